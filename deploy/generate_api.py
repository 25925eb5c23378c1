"""Generates the Python code of every .proto into client/python (committed; a test generates again and compares).

`python deploy/generate_api.py [OUT]`. The google.rpc and google.api imports come from the installed googleapis-common-protos.
"""

import sys
from pathlib import Path

import grpc_tools
from google.rpc import status_pb2
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"


def generate(out: Path) -> None:
    """Write *_pb2.py, *_pb2.pyi, *_pb2_grpc.py and *_pb2_grpc.pyi for each .proto under proto/ into `out`, and empty packages around them."""
    site = Path(status_pb2.__file__).parents[2]
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    files = sorted(str(p.relative_to(PROTO)) for p in PROTO.rglob("*.proto"))
    tools = Path(sys.executable).parent
    plugins = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    plugins += [f"--plugin=protoc-gen-{kind}={tools / f'protoc-gen-{kind}'}" for kind in ("mypy", "mypy_grpc")]
    if protoc.main(["protoc", f"-I{PROTO}", f"-I{site}", f"-I{well_known}", *plugins, *files]) != 0:
        raise SystemExit("protoc refused the files above")
    for file in files:
        for package in Path(file).parents:
            if str(package) not in (".", "hostler"):
                (out / package / "__init__.py").touch()


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "client" / "python")
