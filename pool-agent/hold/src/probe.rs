//! Whether something is so in the sandbox that this is executed in: a port of it accepts connections, a file of it is there. Asked from
//! inside, for from outside neither can be seen: the fence lets nothing in, and what a sandbox writes may be in its own memory alone.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::time::Duration;

/// A connection inside one sandbox is made at once, or never.
const PATIENCE: Duration = Duration::from_secs(1);
/// An address that nobody has (RFC 5737): nothing is sent there.
const NOBODY: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);
/// Of what is no question at all.
const USAGE: u8 = 64;

/// 0: it is so. 1: it is not, and why. 64: what is asked?
pub fn answer(asked: &[OsString]) -> ExitCode {
    let words: Vec<_> = asked.iter().filter_map(|word| word.to_str()).collect();
    let so = match words[..] {
        ["tcp", port] if words.len() == asked.len() => match port.parse() {
            Ok(port) => accepts(port),
            Err(_) => return told("a port is a number of 1 to 65535", USAGE),
        },
        ["file", path] => fs::metadata(path).map(drop).map_err(|e| format!("{path}: {e}")),
        _ => return told("asked for neither tcp PORT nor file PATH", USAGE),
    };
    match so {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => told(&why, 1),
    }
}

/// On any address that a server in here may listen on: the loopback ones, and the one that packets would leave by.
fn accepts(port: u16) -> Result<(), String> {
    let mut addresses = vec![IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
    addresses.extend(own());
    let mut refused = Vec::new();
    for address in addresses {
        match TcpStream::connect_timeout(&SocketAddr::new(address, port), PATIENCE) {
            Ok(_) => return Ok(()),
            Err(error) => refused.push(format!("{address} port {port}: {error}")),
        }
    }
    Err(refused.join("; "))
}

/// To connect a UDP socket sends nothing, and says which address it would be sent from.
fn own() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(NOBODY).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

fn told(why: &str, status: u8) -> ExitCode {
    let _ = writeln!(io::stderr(), "{why}"); // whoever asks reads it, or does not
    ExitCode::from(status)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn asked(words: &[&str]) -> ExitCode {
        answer(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn it_says_what_is_so() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let dir = tempfile::tempdir().unwrap();
        let (there, gone) = (dir.path().to_str().unwrap(), dir.path().join("gone").display().to_string());
        for (words, status) in [
            (&["tcp", &port][..], 0),
            (&["file", there], 0),
            (&["file", &gone], 1),
            (&["tcp", "0x50"], USAGE),
            (&["tcp", "65536"], USAGE),
            (&["tcp"], USAGE),
            (&["dir", there], USAGE),
        ] {
            assert_eq!(asked(words), ExitCode::from(status), "{words:?}");
        }
        drop(listener);
        assert_eq!(asked(&["tcp", &port]), ExitCode::from(1), "nobody listens any more");
        let error = accepts(port.parse().unwrap()).unwrap_err();
        assert!(error.contains("127.0.0.1 port") && error.contains("::1 port"), "{error}");
    }
}
