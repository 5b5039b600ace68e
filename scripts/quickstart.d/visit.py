"""What becomes of a visit to a web site, from inside a sandbox: a line for people, and status 0 where it was as expected.

    visit.py answered|refused HOST CERTIFICATE
"""
import http.client
import socket
import ssl
import sys
import time

PATIENCE = 5  # seconds; who waits so long was not refused

expected, host, certificate = sys.argv[1:]
tls = ssl.create_default_context(cafile=certificate)
began = time.monotonic()
try:
    site = http.client.HTTPSConnection(host, timeout=PATIENCE, context=tls)
    site.request("GET", "/")
    outcome, detail = "answered", site.getresponse().read().decode().strip()
except socket.timeout:
    outcome, detail = "hung", "no answer"
except socket.gaierror as error:
    outcome, detail = "refused", f"the name has no address ({error.strerror})"
except ConnectionError as error:
    outcome, detail = "refused", error.strerror
print(f"  https://{host} {outcome} after {(time.monotonic() - began) * 1000:.0f} ms: {detail}")
sys.exit(outcome != expected)
