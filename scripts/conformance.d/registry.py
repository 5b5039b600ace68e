#!/usr/bin/env python3
"""The images that containerd's client suite pulls, made from busybox and bash and served as ghcr.io and registry.k8s.io on loopback.

usage: registry.py BUSYBOX BASH DIR

Writes DIR/ca.pem (for SSL_CERT_FILE) and DIR/port, then serves on 127.0.0.1:port, as an HTTPS proxy for ghcr.io and
registry.k8s.io alone: the suite's image names are compiled in, and neither /etc/hosts nor its source need to change.
"""
import gzip, hashlib, http.server, io, json, os, ssl, subprocess, sys, tarfile

HOSTS = ["ghcr.io", "registry.k8s.io"]
IMAGES = {
    "containerd/busybox": ["1.36"], "containerd/alpine": ["3.14.0"], "containerd/volume-copy-up": ["2.2"],
    "containerd/volume-ownership": ["2.1"], "pause": ["3.10.2", "3.6"],
    "e2e-test-images/busybox": ["1.29-2"],
}
# Only the machine's own is ever run. The suite pulls some of the others, all of them or none, and looks at what came.
NATIVE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
PLATFORMS = [("amd64", None), ("arm64", "v8"), ("arm", "v7"), ("ppc64le", None), ("s390x", None)]
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
blobs, tags = {}, {}


def put(content):
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    blobs[digest] = content
    return {"digest": digest, "size": len(content)}


def layer(fill):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        fill(tar)
    plain = raw.getvalue()
    diff = "sha256:" + hashlib.sha256(plain).hexdigest()
    packed = put(gzip.compress(plain, mtime=0))
    return {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", **packed}, diff


def entry(tar, name, kind, mode=0o755, content=b"", link=""):
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size, info.linkname = kind, mode, len(content), link
    tar.addfile(info, io.BytesIO(content))


def content_of(path):
    with open(path, "rb") as file:
        return file.read()


def base(busybox, bash):
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()

    def fill(tar):
        for name in ["bin", "dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "usr", "usr/bin", "usr/sbin", "var"]:
            entry(tar, name, tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755)
        entry(tar, "bin/busybox", tarfile.REGTYPE, content=content_of(busybox))
        for applet in applets:
            if applet != "busybox":
                entry(tar, "bin/" + applet, tarfile.SYMTYPE, link="busybox")
        entry(tar, "bin/bash", tarfile.REGTYPE, content=content_of(bash))
        # A test asks whether the set-uid bit outlives the change of a layer's owner. Nothing runs it.
        entry(tar, "usr/bin/passwd", tarfile.REGTYPE, 0o4755, b"#!/bin/false\n")
        users = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n" \
                "sys:x:3:3:sys:/dev:/bin/false\n" \
                "www-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n"
        groups = "root:x:0:\ndaemon:x:1:\nsys:x:3:\nwww-data:x:33:\nwheel:x:10:root\nnobody:x:65534:\n"
        entry(tar, "etc/passwd", tarfile.REGTYPE, 0o644, users.encode())
        entry(tar, "etc/group", tarfile.REGTYPE, 0o644, groups.encode())

    return layer(fill)


def make(busybox, bash):
    def more(tar):
        entry(tar, "test_dir", tarfile.DIRTYPE)
        entry(tar, "test_dir/test_file", tarfile.REGTYPE, 0o644, b"test_content\n")

    def never_run(name):
        return layer(lambda tar: entry(tar, name, tarfile.REGTYPE, content=b"never run\n" * 1000))

    first, second = base(busybox, bash), layer(more)
    # A layer of its own: with one that busybox has too, an image just pulled would count as unpacked.
    pause, foreign = never_run("pause"), never_run("foreign")
    for name, versions in IMAGES.items():
        native = [pause] if name == "pause" else [first, second] if "volume" in name else [first]
        manifests = []
        for architecture, variant in PLATFORMS:
            platform = {"architecture": architecture, "os": "linux"} | ({"variant": variant} if variant else {})
            layers = native if architecture == NATIVE else [foreign]
            config = {**platform, "rootfs": {"type": "layers", "diff_ids": [diff for _, diff in layers]},
                      "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                                 "Cmd": ["sh"], "Labels": {"name": name}}}
            config = {"mediaType": "application/vnd.oci.image.config.v1+json", **put(json.dumps(config).encode())}
            manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [d for d, _ in layers]}
            manifests.append({"mediaType": MANIFEST, **put(json.dumps(manifest).encode()), "platform": platform})
        index = put(json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).encode())
        for version in versions:
            tags[name, version] = index["digest"]


class Registry(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_CONNECT(self):
        if self.path.split(":")[0] not in HOSTS:
            return self.send_error(403)
        self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self.connection = context.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb")

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        content, kind = None, "application/octet-stream"
        if parts == ["v2"]:
            content, kind = b"{}", "application/json"
        elif parts[0] == "v2" and len(parts) > 3:
            digest = tags.get(("/".join(parts[1:-2]), parts[-1]), parts[-1])
            content = blobs.get(digest)
            if parts[-2] == "manifests" and content:
                kind = json.loads(content)["mediaType"]
        self.send_response(200 if content is not None else 404)
        self.send_header("Content-Length", str(len(content or b"")))
        if content is not None:
            self.send_header("Content-Type", kind)
            self.send_header("Docker-Content-Digest", "sha256:" + hashlib.sha256(content).hexdigest())
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content or b"")
        self.wfile.flush()


busybox, bash, where = sys.argv[1:]
make(busybox, bash)
names = ",".join("DNS:" + host for host in HOSTS)
subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=conformance",
                "-addext", "subjectAltName=" + names, "-keyout", where + "/key.pem", "-out", where + "/ca.pem"],
               check=True, capture_output=True)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(where + "/ca.pem", where + "/key.pem")
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
with open(where + "/port.partial", "w") as file:
    file.write(str(server.server_address[1]))
os.rename(where + "/port.partial", where + "/port")
server.serve_forever()
