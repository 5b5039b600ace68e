//! A netlink socket, and talking through it: one question and its answers, many at once, or a batch that holds as a whole or not at all.
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
    /// For what is received, made once: to clear so much memory for each answer costs more than the kernel's answering.
    datagram: Vec<u8>,
}

/// What was said to one message: the answers, or a refusal.
type Said = Result<Vec<Message>, Errno>;

impl Netlink {
    /// Opens one of this protocol.
    pub fn open(protocol: SockProtocol) -> io::Result<Self> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?; // binds it, too
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
        setsockopt(&socket, sockopt::SndBufForce, &ROOM)?;
        setsockopt(&socket, sockopt::RcvBufForce, &ROOM)?;
        Ok(Self(Mutex::new(Conversation { socket, sequence: 0, datagram: vec![0; DATAGRAM] })))
    }

    /// Asks, and returns what was answered.
    pub fn ask(&self, mut question: Message) -> io::Result<Vec<Message>> {
        // A dump ends by itself, any other answer with an acknowledgement.
        if question.flags & NLM_F_DUMP != NLM_F_DUMP {
            question.flags |= NLM_F_ACK;
        }
        let said = self.lock().exchange(std::slice::from_ref(&question), false)?;
        said.into_iter()
            .next()
            .map_or(Ok(Vec::new()), |said| said.map_err(|error| Refused::new(error, &question).into()))
    }

    /// Asks all of these by one call, and returns what was answered to each, in their order. None may be a dump, of which a socket
    /// has one at a time.
    pub fn ask_all(&self, mut questions: Vec<Message>) -> io::Result<Vec<io::Result<Vec<Message>>>> {
        let Some(last) = questions.last_mut() else { return Ok(Vec::new()) };
        last.flags |= NLM_F_ACK;
        let said = self.lock().exchange(&questions, false)?;
        let refused = |(said, question): (Said, &Message)| said.map_err(|error| Refused::new(error, question).into());
        Ok(said.into_iter().zip(&questions).map(refused).collect())
    }

    /// What the kernel tells by itself. Waits; nothing, if it is silent for some seconds.
    pub fn heard(&self) -> io::Result<Vec<Message>> {
        let mut conversation = self.lock();
        let Conversation { socket, datagram, .. } = &mut *conversation;
        let length = match recv(socket.as_raw_fd(), datagram, MsgFlags::empty()) {
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
        let said = self.lock().exchange(&messages, true)?;
        match said.into_iter().zip(&messages).find_map(|(said, message)| Some(Refused::new(said.err()?, message))) {
            Some(refused) => Err(refused.into()),
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Conversation> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Conversation {
    /// Sends all by one call, and receives until the last that is acknowledged, or dumped, is. Of a batch `as_one` a refusal of the
    /// whole is said to its first message, and nothing after it.
    fn exchange(&mut self, messages: &[Message], as_one: bool) -> io::Result<Vec<Said>> {
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
            bytes.resize(align(bytes.len()), 0);
        }
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        let mut all: Vec<Said> = vec![Ok(Vec::new()); messages.len()];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut self.datagram, MsgFlags::empty())?;
            let mut rest = &self.datagram[..length];
            while !rest.is_empty() {
                let answer = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
                let (sequence, payload) = (answer.sequence_number(), answer.payload());
                let index = sequence.wrapping_sub(first) as usize;
                if let Some(said) = all.get_mut(index) {
                    match answer.message_type() {
                        kind @ (NLMSG_ERROR | NLMSG_DONE) => {
                            let refusal = errno(payload);
                            if let Some(error) = refusal {
                                *said = Err(error);
                            }
                            let is_end = kind == NLMSG_DONE || sequence == awaited;
                            if is_end || (as_one && sequence == first && refusal.is_some()) {
                                return Ok(all);
                            }
                        }
                        kind => {
                            if let Ok(answers) = said {
                                answers.push(Message { kind, flags: answer.flags(), payload: payload.to_vec() });
                            }
                        }
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
