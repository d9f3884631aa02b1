"""Compiles CUDA sources with NVRTC, which needs neither a GPU nor nvcc.

usage: nvrtc.py LIBNVRTC INCLUDE_FOLDER ARCHITECTURE SOURCE...
"""

import ctypes
import pathlib
import sys


def compile_source(nvrtc, include, architecture, path):
    """The PTX of a source; its headers are looked for beside it and in `include`."""
    program = ctypes.c_void_p()
    source = path.read_bytes()
    check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, path.name.encode(), 0, None, None))
    options = [
        f"--gpu-architecture={architecture}",
        "--std=c++17",
        f"--include-path={include}",
        f"--include-path={path.parent}",
    ]
    encoded = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    result = nvrtc.nvrtcCompileProgram(program, len(options), encoded)
    size = ctypes.c_size_t()
    if result != 0:
        check(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
        log = ctypes.create_string_buffer(size.value)
        check(nvrtc.nvrtcGetProgramLog(program, log))
        sys.exit(f"{path}: {log.value.decode()}")
    check(nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size)))
    ptx = ctypes.create_string_buffer(size.value)
    check(nvrtc.nvrtcGetPTX(program, ptx))
    check(nvrtc.nvrtcDestroyProgram(ctypes.byref(program)))
    return ptx.value.decode()


def check(result):
    if result != 0:
        sys.exit(f"NVRTC error {result}")


def main():
    library, include, architecture, *sources = sys.argv[1:]
    # NVRTC looks for this by name only.
    for builtins in pathlib.Path(library).parent.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(builtins))
    nvrtc = ctypes.CDLL(library)
    for source in map(pathlib.Path, sources):
        ptx = compile_source(nvrtc, include, architecture, source)
        print(f"{source.name}: {ptx.count('.visible .entry')} kernels for {architecture}")


if __name__ == "__main__":
    main()
