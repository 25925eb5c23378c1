#!/usr/bin/env bash
# buf lint over proto/, with the google.* imports taken from the installed package (buf's registry is not needed).
set -euo pipefail
cd "$(dirname "$0")/.."
site=$(.venv/bin/python -c 'import pathlib, google.rpc.status_pb2 as s; print(pathlib.Path(s.__file__).parents[2])')
work=build/proto-lint
rm -rf "$work" && mkdir -p "$work/deps/google"
cp -r proto "$work/proto"
for part in rpc api; do
    mkdir -p "$work/deps/google/$part" && cp "$site/google/$part"/*.proto "$work/deps/google/$part/"
done
{ echo "version: v2"; echo "modules: [{path: proto}, {path: deps, lint: {ignore: [deps]}}]"; sed -n '/^lint:/,$p' proto/buf.yaml | sed 's|\[hostler/internal/etcd\]|[proto/hostler/internal/etcd]|'; } >"$work/buf.yaml"
rm "$work/proto/buf.yaml"
cd "$work" && buf lint proto
