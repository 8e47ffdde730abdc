"""Models written for Triton's Python backend: `TritonPythonModel` in model.py, and the module that they import.

`backend_utils` is what such a model knows as `triton_python_backend_utils`; `channel` carries its answers; `model`
speaks to it; `loader` finds, imports and starts it. All of it is the code tier's: it runs in the sandbox alone.
"""
