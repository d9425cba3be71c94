"""The compiled kernels.  Their whole interface is __init__.pyi; their sources are in /_native."""
