import subprocess
import sys


def test_evaluation_needs_no_torch():
    code = "import sys, iog_export.evaluation.cli; assert not {'torch', 'onnx', 'grpc'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
