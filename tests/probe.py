"""What an untrusted workload tries. Runs inside a sandbox, or as root in its network namespace; one JSON object a line.

    probe.py '["tcp", "93.184.215.14", 443]' '["dns", "open.creto.net", "A", "9.9.9.9", "udp"]' ...
"""

import errno
import json
import os
import socket
import ssl
import struct
import sys
import time

PATIENCE = 4.0
TYPES = {"A": 1, "NS": 2, "CNAME": 5, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33, "HTTPS": 65, "ANY": 255}


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def failed(error):
    """A refusal by its name; what a time-out or a reset is must be told apart."""
    if isinstance(error, (TimeoutError, socket.timeout)):
        return "timeout"
    if isinstance(error, OSError) and error.errno:
        return errno.errorcode.get(error.errno, str(error.errno))
    return type(error).__name__ + ": " + str(error)


def connect(address, port):
    stream = socket.socket(family(address), socket.SOCK_STREAM)
    stream.settimeout(PATIENCE)
    stream.connect((address, port))
    return stream


def tcp(address, port, say="", read=64):
    """Connects, says something, and tells what comes back; connecting alone is no success, for a gate may answer."""
    stream = connect(address, port)
    if say:
        stream.sendall(say.encode())
    return "got " + stream.recv(read).decode("latin-1") if read else "open"


def http(address, host, port=80, path="/"):
    stream = connect(address, port)
    stream.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    got = b""
    while True:
        part = stream.recv(4096)
        if not part:
            return "got " + got.decode("latin-1")
        got += part


def tls(address, sni, port=443):
    """TLS with this server name (none where it is empty), whatever the certificate says; then a request over it."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    stream = context.wrap_socket(connect(address, port), server_hostname=sni or None)
    stream.sendall(f"GET / HTTP/1.1\r\nHost: {sni}\r\nConnection: close\r\n\r\n".encode())
    got = b""
    try:
        while True:
            part = stream.recv(4096)
            if not part:
                break
            got += part
    except ssl.SSLEOFError:
        pass
    return "got " + got.decode("latin-1")


def hello(address, port, hexes, wait=1):
    """Raw bytes, e.g. of a TLS hello, and what comes back."""
    stream = connect(address, port)
    for part in hexes:
        stream.sendall(bytes.fromhex(part))
    return "got " + stream.recv(4096).hex() if wait else "sent"


def question(name, kind, number=4711):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split("."))
    edns = b"\0" + struct.pack("!HHIH", 41, 1232, 0, 0)
    return struct.pack("!6H", number, 0x0100, 1, 0, 0, 1) + labels + b"\0" + struct.pack("!2H", TYPES[kind], 1) + edns


def skip_name(message, at):
    while True:
        length = message[at]
        if length >= 0xC0:
            return at + 2
        at += 1 + length
        if length == 0:
            return at


def dns(name, kind="A", server="9.9.9.9", over="udp"):
    """`NOERROR 198.18.0.5`, `REFUSED`, …"""
    query = question(name, kind)
    if over == "udp":
        sock = socket.socket(family(server), socket.SOCK_DGRAM)
        sock.settimeout(PATIENCE)
        sock.connect((server, 53))
        sock.send(query)
        reply = sock.recv(4096)
    else:
        stream = connect(server, 53)
        stream.sendall(struct.pack("!H", len(query)) + query)
        reply = stream.recv(4098)[2:]
    codes = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}
    answers, at = struct.unpack("!H", reply[6:8])[0], 12
    for _ in range(struct.unpack("!H", reply[4:6])[0]):
        at = skip_name(reply, at) + 4
    found = []
    for _ in range(answers):
        at = skip_name(reply, at)
        kind, _, _, length = struct.unpack("!HHIH", reply[at : at + 10])
        data = reply[at + 10 : at + 10 + length]
        found.append(socket.inet_ntop(socket.AF_INET if length == 4 else socket.AF_INET6, data) if kind in (1, 28) else data.hex())
        at += 10 + length
    return " ".join([codes.get(reply[3] & 15, "?")] + found)


def resolve(name):
    answer = dns(name).split()
    if answer[0] != "NOERROR" or len(answer) < 2:
        raise OSError(errno.ENOENT, " ".join(answer))
    return answer[1]


def by_name(name, port=443, sni=None, host=None):
    """What a browser does: resolve, connect, speak TLS (443) or HTTP."""
    address = resolve(name)
    if port == 443:
        return tls(address, name if sni is None else sni)
    return http(address, name if host is None else host, port)


def udp(address, port, say="hello", wait=1.0):
    sock = socket.socket(family(address), socket.SOCK_DGRAM)
    sock.settimeout(wait)
    sock.connect((address, port))
    sock.send(say.encode())
    return "got " + sock.recv(2048).decode("latin-1")


def fragments(address, port):
    """A datagram that no link carries whole."""
    return udp(address, port, "x" * 4000)


def ping(address):
    kind, protocol = (8, socket.IPPROTO_ICMP) if "." in address else (128, socket.IPPROTO_ICMPV6)
    try:
        sock = socket.socket(family(address), socket.SOCK_DGRAM, protocol)
    except OSError:
        sock = socket.socket(family(address), socket.SOCK_RAW, protocol)
    sock.settimeout(1.0)
    body = struct.pack("!BBHHH", kind, 0, 0, 77, 1) + b"creto-ping"
    if "." in address:
        total = sum(struct.unpack("!9H", body))
        total = (total >> 16) + (total & 0xFFFF)
        body = struct.pack("!BBHHH", kind, 0, ~(total + (total >> 16)) & 0xFFFF, 77, 1) + b"creto-ping"
    sock.sendto(body, (address, 0))
    while True:
        got = sock.recv(2048)
        if "." in address and got[0] >> 4 == 4:  # a raw socket shows the header, too
            got = got[(got[0] & 15) * 4 :]
        if got[0] == (0 if "." in address else 129):
            return "got " + got.hex()
        if got[0] in (1, 3):
            raise OSError(errno.EHOSTUNREACH, "refused by ICMP")


def frame(device, hexes):
    """A frame as it is, past everything in the sandbox that could say no."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind((device, 0))
    return f"sent {sock.send(bytes.fromhex(hexes))}"


def download(name, port, file, seconds=20):
    """Reads for as long as something comes; its progress stands in a file."""
    stream = connect(resolve(name) if not name[0].isdigit() else name, port)
    total, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            part = stream.recv(65536)
        except OSError as error:
            return f"cut after {total}: {failed(error)}"
        if not part:
            return f"ended after {total}"
        total += len(part)
        with open(file + ".new", "w") as progress:
            progress.write(str(total))
        os.rename(file + ".new", file)
    return f"went on to {total}"


def flood(name, count, server="9.9.9.9"):
    """Questions as fast as they go, each for another name below this one; how many were answered with an address."""
    sock = socket.socket(family(server), socket.SOCK_DGRAM)
    sock.settimeout(0.5)
    sock.connect((server, 53))
    good = 0
    for number in range(count):
        sock.send(question(f"x{number}.{name}", "A", number & 0xFFFF))
        try:
            reply = sock.recv(2048)
            good += reply[3] & 15 == 0 and reply[7] > 0
        except OSError:
            pass
    return good


def main():
    for words in sys.argv[1:]:
        what, *rest = json.loads(words)
        began = time.monotonic()
        try:
            result = {"ok": globals()[what](*rest)}
        except Exception as error:  # every failure is an answer here
            result = {"failed": failed(error)}
        result["ms"] = round((time.monotonic() - began) * 1000, 1)
        print(json.dumps(result), flush=True)


main()
