"""The quickstart's internet: a DNS server, and a web server that speaks HTTPS under every name that the DNS knows.

    internet.py RESOLVER CERTIFICATE KEY NAME=ADDRESS…

Prints `ready` when all of it listens.
"""
import http.server
import socketserver
import ssl
import struct
import sys
import threading

A, IN, NXDOMAIN = 1, 1, 3


def answer(query: bytes, names: dict[str, bytes]) -> bytes:
    """RFC 1035 §4.1: what is said to a query of one question, without compression as queries have none."""
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode().lower())
        at += 1 + length
    kind, _ = struct.unpack_from("!HH", query, at + 1)
    address = names.get(".".join(labels))
    code = 0 if address else NXDOMAIN
    records = b""
    if address and kind == A:
        records = struct.pack("!HHHIH", 0xC00C, A, IN, 60, len(address)) + address  # 0xC00C: the question's name
    header = query[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, 1 if records else 0, 0, 0)
    return header + query[12 : at + 5] + records


class Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"hello from {self.headers['Host']}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    resolver, certificate, key, *sites = sys.argv[1:]
    names = {name: bytes(map(int, address.split("."))) for name, address in (site.split("=") for site in sites)}

    class Dns(socketserver.BaseRequestHandler):
        def handle(self):
            query, socket = self.request
            socket.sendto(answer(query, names), self.client_address)

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    web = http.server.ThreadingHTTPServer(("", 443), Site)
    # The handshake belongs to the connection's thread: a client that says nothing must not stop the others.
    web.socket = tls.wrap_socket(web.socket, server_side=True, do_handshake_on_connect=False)
    dns = socketserver.ThreadingUDPServer((resolver, 53), Dns)
    threading.Thread(target=dns.serve_forever, daemon=True).start()
    print("ready", flush=True)
    web.serve_forever()


main()
