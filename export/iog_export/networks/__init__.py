"""The networks: plain `nn.Module`s whose state-dict keys are the published ones."""

from .iog import IOG as IOG
from .iog import NetworkSpec as NetworkSpec
from .iog import Outputs as Outputs
from .random_weights import randomize as randomize
from .resnet import Features as Features
