"""The kernel for GPUs is tested where triton is installed (it comes with CUDA builds of torch), else on GPUs alone."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("triton") else ["test_paged_triton.py"]
