//! A netlink socket, and talking through it: one question and its answers, or a batch that holds as a whole or not at all.
//! Knows frames, not what is in them. Source: netlink(7), Linux `include/uapi/linux/netlink.h`, `nfnetlink.h`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// How long the kernel may take to answer, in seconds; it answers within the call that asks.
const PATIENCE: i64 = 5;
/// Room for the longest batch, in bytes: a policy of some thousand rules.
const ROOM: usize = 8 << 20;

/// No datagram of the kernel's is longer, in bytes.
const DATAGRAM: usize = 1 << 18;
/// The length of a message's header, in bytes.
const HEADER: usize = 16;

/// One message without its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`; REQUEST is added.
    pub flags: u16,
    /// What follows the header.
    pub payload: Vec<u8>,
}

/// A socket to the kernel, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Netlink(Mutex<Conversation>);

#[derive(Debug)]
struct Conversation {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens one of this protocol.
    pub fn open(protocol: SockProtocol) -> io::Result<Self> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?; // binds it, too
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
        setsockopt(&socket, sockopt::SndBufForce, &ROOM)?;
        setsockopt(&socket, sockopt::RcvBufForce, &ROOM)?;
        Ok(Self(Mutex::new(Conversation { socket, sequence: 0 })))
    }

    /// Asks, and returns what was answered.
    pub fn ask(&self, mut question: Message) -> io::Result<Vec<Message>> {
        // A dump ends by itself, any other answer with an acknowledgement.
        if question.flags & NLM_F_DUMP != NLM_F_DUMP {
            question.flags |= NLM_F_ACK;
        }
        self.lock().exchange(&[question])
    }

    /// What the kernel tells by itself. Waits; nothing, if it is silent for some seconds.
    pub fn heard(&self) -> io::Result<Vec<Message>> {
        let mut datagram = vec![0; DATAGRAM];
        let length = match recv(self.lock().socket.as_raw_fd(), &mut datagram, MsgFlags::empty()) {
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Vec::new()),
            length => length?,
        };
        let (mut messages, mut rest) = (Vec::new(), &datagram[..length]);
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
            let (kind, flags, payload) = (message.message_type(), message.flags(), message.payload().to_vec());
            messages.push(Message { kind, flags, payload });
            rest = rest.get(align(message.length() as usize)..).unwrap_or_default();
        }
        Ok(messages)
    }

    /// Sends several as one. The last of `messages` before `end` is acknowledged when all have been looked at.
    pub fn batch(&self, begin: Message, mut messages: Vec<Message>, end: Message) -> io::Result<()> {
        let Some(last) = messages.last_mut() else { return Ok(()) };
        last.flags |= NLM_F_ACK;
        messages.insert(0, begin);
        messages.push(end);
        self.lock().exchange(&messages).map(drop)
    }

    fn lock(&self) -> MutexGuard<'_, Conversation> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Conversation {
    fn exchange(&mut self, messages: &[Message]) -> io::Result<Vec<Message>> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        let mut awaited = first;
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            if message.flags & (NLM_F_ACK | NLM_F_DUMP) != 0 {
                awaited = self.sequence;
            }
            bytes.extend(((HEADER + message.payload.len()) as u32).to_ne_bytes());
            bytes.extend(message.kind.to_ne_bytes());
            bytes.extend((message.flags | NLM_F_REQUEST).to_ne_bytes());
            bytes.extend(self.sequence.to_ne_bytes());
            bytes.extend([0; 4]); // the port: the kernel knows it
            bytes.extend(&message.payload);
        }
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        let mut datagram = vec![0; DATAGRAM];
        let (mut answers, mut failure) = (Vec::new(), None);
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut datagram, MsgFlags::empty())?;
            let mut rest = &datagram[..length];
            while !rest.is_empty() {
                let answer = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
                let (sequence, payload) = (answer.sequence_number(), answer.payload());
                let index = sequence.wrapping_sub(first) as usize;
                if index < messages.len() {
                    match answer.message_type() {
                        NLMSG_ERROR => {
                            if let Some(error) = errno(payload) {
                                failure.get_or_insert_with(|| Refused::new(error, &messages[index]));
                            }
                            // A batch that cannot be committed, or not even be begun, is answered at its first message.
                            if sequence == awaited || (sequence == first && failure.is_some()) {
                                return failure.map_or(Ok(answers), |refused| Err(refused.into()));
                            }
                        }
                        NLMSG_DONE => return errno(payload).map_or(Ok(answers), |error| Err(error.into())),
                        kind => answers.push(Message { kind, flags: answer.flags(), payload: payload.to_vec() }),
                    }
                }
                rest = rest.get(align(answer.length() as usize)..).unwrap_or_default();
            }
        }
    }
}

fn errno(payload: &[u8]) -> Option<Errno> {
    let code = payload.first_chunk().map(|code| i32::from_ne_bytes(*code))?;
    (code < 0).then(|| Errno::from_raw(-code))
}

/// The next multiple of four.
pub(crate) fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// The kernel's refusal, and what it refused.
#[derive(Debug, thiserror::Error)]
#[error("message of type {kind:#06x}: {error}")]
struct Refused {
    error: Errno,
    kind: u16,
}

impl Refused {
    fn new(error: Errno, message: &Message) -> Self {
        Self { error, kind: message.kind }
    }
}

/// What the kernel said, where an error is its refusal.
pub fn refusal(error: &io::Error) -> Option<Errno> {
    let refused = error.get_ref().and_then(|inner| inner.downcast_ref::<Refused>());
    refused.map(|refused| refused.error).or_else(|| error.raw_os_error().map(Errno::from_raw))
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        Self::new(Self::from(refused.error).kind(), refused)
    }
}
