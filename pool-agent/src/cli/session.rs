//! A command's streams, carried between this terminal (or these pipes) and a sandbox, until the command ends: `exec`, `claim POOL -- …`
//! and `spawn --wait`. `channels` has the messages.

use std::future;
use std::io::{self, Write};

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::agent_api::Stream;
use super::chunks::{self, Chunks};
use super::terminal::{self, Raw};
use crate::channels::{BadFrame, End, Frame, STDIN};

/// The exit code where not the command failed but we, so that the two can be told apart; docker's choice, too.
pub const OURS: u8 = 125;

/// What is carried beside what the command writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// What comes at stdin.
    pub stdin: bool,
    /// A terminal, with its size and every key.
    pub tty: bool,
}

/// Why the streams ended before the command did.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The connection has.
    #[error("the connection to creto-pool-agent ended before the command did")]
    Cut,
    /// The connection broke.
    #[error("the connection to creto-pool-agent")]
    Broken(#[source] Error),
    /// The agent said something that is not of the protocol.
    #[error("what creto-pool-agent says: is it of the same version?")]
    Protocol(#[from] BadFrame),
    /// The command could not be run.
    #[error("{0}")]
    Failed(String),
    /// Somebody wants us to end.
    #[error("ended by a signal")]
    Ended,
    /// The terminal does not obey.
    #[error("setting the terminal up")]
    Terminal(#[source] io::Error),
    /// Stdin cannot be read.
    #[error("reading stdin")]
    Input(#[source] io::Error),
    /// What the command writes cannot be passed on.
    #[error("writing what the command writes")]
    Output(#[source] io::Error),
}

/// Carries them; answers the command's exit code.
pub async fn carry(stream: Stream, wanted: Wanted, out: &mut dyn Write) -> Result<u8, SessionError> {
    let listen = |kind| signal(kind).map_err(SessionError::Terminal);
    let (mut terminated, mut hung_up) = (listen(SignalKind::terminate())?, listen(SignalKind::hangup())?);
    let resized = if wanted.tty { Some(listen(SignalKind::window_change())?) } else { None };
    // Ends with this function, so that an error is not printed on a raw terminal.
    let _raw = if wanted.tty { Some(Raw::enter().map_err(SessionError::Terminal)?) } else { None };
    let (there, here) = stream.split();
    tokio::select! {
        code = hear(here, out) => code,
        failed = say(there, wanted, resized) => Err(failed),
        _ = terminated.recv() => Err(SessionError::Ended),
        _ = hung_up.recv() => Err(SessionError::Ended),
    }
}

/// What the command writes, and its end.
async fn hear(mut here: SplitStream<Stream>, out: &mut dyn Write) -> Result<u8, SessionError> {
    while let Some(message) = here.next().await {
        let bytes = match message {
            Ok(Message::Binary(bytes)) => bytes,
            Ok(Message::Close(_)) | Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => break,
            Ok(Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => continue,
            Err(error) => return Err(SessionError::Broken(error)),
        };
        match Frame::decode(bytes)? {
            Frame::Stdout(bytes) => out.write_all(&bytes).and_then(|()| out.flush()).map_err(SessionError::Output)?,
            Frame::Stderr(bytes) => io::stderr().write_all(&bytes).map_err(SessionError::Output)?,
            Frame::End(End::Exited(code)) => return Ok(code),
            Frame::End(End::Failed(why)) => return Err(SessionError::Failed(why)),
            Frame::Stdin(_) | Frame::Resize(_) | Frame::Close(_) => {} // of no meaning in this direction
        }
    }
    Err(SessionError::Cut)
}

/// What it is to read, and the size of the terminal. Comes back only with an error: the command's end is heard, not said.
async fn say(mut there: SplitSink<Stream, Message>, wanted: Wanted, mut resized: Option<Signal>) -> SessionError {
    let mut input = wanted.stdin.then(chunks::stdin);
    let mut next = size(wanted);
    loop {
        if let Some(frame) = next.take()
            && there.send(Message::Binary(frame.encode())).await.is_err()
        {
            return future::pending().await; // who has ended reads no more; `hear` hears why
        }
        next = tokio::select! {
            chunk = read(&mut input) => match chunk {
                Some(Ok(bytes)) => Some(Frame::Stdin(bytes)),
                Some(Err(error)) => return SessionError::Input(error),
                None => {
                    input = None;
                    Some(Frame::Close(STDIN))
                }
            },
            _ = changed(&mut resized) => size(wanted),
        };
    }
}

fn size(wanted: Wanted) -> Option<Frame> {
    terminal::size().filter(|_| wanted.tty).map(Frame::Resize)
}

/// The next of stdin; where nothing is to be read, never.
async fn read(input: &mut Option<Chunks>) -> Option<io::Result<Bytes>> {
    match input {
        Some(chunks) => chunks.recv().await,
        None => future::pending().await,
    }
}

async fn changed(resized: &mut Option<Signal>) -> Option<()> {
    match resized {
        Some(signal) => signal.recv().await,
        None => future::pending().await,
    }
}
