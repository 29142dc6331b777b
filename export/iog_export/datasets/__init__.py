"""Data sets of photographs with object masks; nothing here needs torch."""

from .dataset import DataSet as DataSet
from .dataset import Layout as Layout
from .dataset import shared as shared
from .formats import FORMATS as FORMATS
from .formats import open_layout as open_layout
from .photograph import DataError as DataError
from .photograph import Item as Item
from .photograph import Labels as Labels
from .photograph import Photograph as Photograph
from .photograph import Target as Target
