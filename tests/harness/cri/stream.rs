//! What `kubectl exec`, `attach` and `port-forward` come to: containerd's streaming server, by WebSocket (`v4.channel.k8s.io`).

use std::net::TcpStream;
use std::time::Duration;

use k8s_cri::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use tungstenite::{ClientRequestBuilder, Error, Message, WebSocket};

use super::{Cri, Pod};
use crate::harness::poll;

/// Channels of exec and attach.
pub const STDIN: u8 = 0;
/// See [`STDIN`].
pub const STDOUT: u8 = 1;
/// See [`STDIN`]; port-forward's has the same number less two.
pub const STATUS: u8 = 3;
const RESIZE: u8 = 4;
/// Port-forward's.
pub const DATA: u8 = 0;
/// See [`DATA`].
pub const ERROR: u8 = 1;

/// One session; what comes is kept by channel.
pub struct Stream {
    socket: WebSocket<TcpStream>,
    heard: [Vec<u8>; 5],
    over: bool,
}

impl Stream {
    fn open(cri: &Cri, url: &str) -> Self {
        let url = url.replacen("http://", "ws://", 1);
        let request = ClientRequestBuilder::new(url.parse().unwrap()).with_sub_protocol("v4.channel.k8s.io");
        let at = url.trim_start_matches("ws://").split('/').next().unwrap().to_owned();
        let tcp = cri.network.host.inside(|| TcpStream::connect(at)).unwrap();
        let (socket, _) = tungstenite::client(request, tcp).unwrap_or_else(|e| panic!("{url}: {e}"));
        socket.get_ref().set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        Self { socket, heard: Default::default(), over: false }
    }

    /// Sends to a channel.
    pub fn send(&mut self, channel: u8, bytes: &[u8]) {
        self.socket.send(Message::Binary([&[channel][..], bytes].concat().into())).unwrap();
    }

    /// Says how large the terminal is.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        self.send(RESIZE, format!(r#"{{"Width":{columns},"Height":{rows}}}"#).as_bytes());
    }

    /// Takes in what comes within a moment.
    pub fn listen(&mut self) {
        match self.socket.read() {
            Ok(Message::Binary(bytes)) if !bytes.is_empty() => {
                self.heard[usize::from(bytes[0])].extend(&bytes[1..]);
            }
            Ok(_) => {}
            Err(Error::Io(e)) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => self.over = true,
        }
    }

    /// What a channel has said so far.
    pub fn said(&self, channel: u8) -> String {
        String::from_utf8_lossy(&self.heard[usize::from(channel)]).into_owned()
    }

    /// Waits until a channel has said this.
    #[track_caller]
    pub fn wait_for(&mut self, channel: u8, text: &str) {
        let heard = poll(|| {
            self.listen();
            self.said(channel).contains(text).then_some(())
        });
        assert!(heard.is_some(), "no {text:?} on {channel}: {:?}", [0, 1, 2, 3].map(|c| self.said(c)));
    }

    /// Waits for the end; what the status channel says.
    #[track_caller]
    pub fn finish(mut self) -> (String, String) {
        let over = poll(|| {
            self.listen();
            self.over.then_some(())
        });
        assert!(over.is_some(), "the session does not end: {:?}", [0, 1, 2, 3].map(|c| self.said(c)));
        (self.said(STDOUT), self.said(STATUS))
    }
}

impl Cri {
    /// `kubectl exec`; with a terminal, or with stdin and all outputs.
    pub fn exec_stream(&self, id: &str, tty: bool, command: &[&str]) -> Stream {
        let cmd = command.iter().map(|word| (*word).to_owned()).collect();
        let (container_id, stdin, stdout, stderr) = (id.to_owned(), true, true, !tty);
        let request = ExecRequest { container_id, cmd, tty, stdin, stdout, stderr };
        Stream::open(self, &self.ask(self.client().exec(request)).unwrap().url)
    }

    /// `kubectl attach`.
    pub fn attach(&self, id: &str, tty: bool) -> Stream {
        let (container_id, stdin, stdout, stderr) = (id.to_owned(), true, true, !tty);
        let request = AttachRequest { container_id, stdin, tty, stdout, stderr };
        Stream::open(self, &self.ask(self.client().attach(request)).unwrap().url)
    }

    /// `kubectl port-forward`, of one connection to one port. Both channels begin with the port, in two bytes.
    pub fn forward(&self, pod: &Pod, port: u16) -> Stream {
        let request = PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![port.into()] };
        let url = self.ask(self.client().port_forward(request)).unwrap().url;
        Stream::open(self, &format!("{url}?port={port}"))
    }
}
