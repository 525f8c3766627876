"""
What cannot be said in pyproject.toml: the cffi modules, and the wheel's abi3 tag.
"""

import sysconfig

from setuptools import setup

# setuptools refuses py_limited_api on free-threaded builds before Python 3.15.
abi3 = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"py_limited_api": "cp311"}

setup(cffi_modules=["build_ffi.py:btrfs", "build_ffi.py:http2"], options={"bdist_wheel": abi3})
