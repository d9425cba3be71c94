"""The compiled kernels.  Their whole interface is __init__.pyi; their sources are in /_native."""

from gateway._native import smtp as smtp
from gateway._native.dot import *
from gateway._native.smtp import *
