//! What a client may say on a flow that goes to a name: nothing, until it is clear that it speaks to that name.
//!
//! There is no moment after which anything passes unseen: a client that waits, and lets the server speak first, is held to
//! the name when it speaks. Pure; the clock is `flow`'s and `splice`'s.

use super::Ech;
use super::http::Requests;
use super::refusal::Refusal;
use super::sniff::{Malformed, Sniffed, sniff};
use super::way::Sieve;
use crate::policy::Fqdn;

/// Follows what a client says.
#[derive(Debug)]
pub enum Filter {
    /// It has yet to tell what it speaks, or to tell all of its ClientHello.
    Sniffing(Expected),
    /// Cleartext HTTP.
    Http(Requests),
    /// All passes.
    Free,
}

/// What it has to say.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The host that it asked our DNS for.
    pub name: Fqdn,
    /// The port that it connected to.
    pub port: u16,
    /// What becomes of an encrypted ClientHello.
    pub ech: Ech,
}

impl Sieve for Filter {
    fn pass(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        if let Self::Sniffing(expected) = self {
            *self = match sniff(bytes) {
                Sniffed::NeedMore => return Ok(0),
                Sniffed::Opaque => Self::Free,
                Sniffed::Malformed(malformed) => return Err(malformed.into()),
                Sniffed::Http => Self::Http(Requests::to(expected.name.clone(), expected.port)),
                Sniffed::Tls(hello) => {
                    let named = hello.server_name.ok_or(Refusal::NoServerName)?;
                    if Fqdn::parse(&named).ok().as_ref() != Some(&expected.name) {
                        return Err(Refusal::ServerName(named));
                    }
                    if hello.encrypted && expected.ech == Ech::Refuse {
                        return Err(Refusal::EncryptedHello);
                    }
                    Self::Free
                }
            };
        }
        match self {
            Self::Free => Ok(bytes.len()),
            Self::Http(requests) => {
                let passed = requests.pass(bytes)?;
                if requests.have_ended() {
                    *self = Self::Free;
                }
                Ok(passed)
            }
            Self::Sniffing(_) => Ok(0),
        }
    }

    fn ended(&mut self, rest: &[u8]) -> Result<(), Refusal> {
        match rest.is_empty() {
            true => Ok(()),
            false => Err(Malformed("an end in the middle of a head").into()),
        }
    }

    fn is_free(&self) -> bool {
        matches!(self, Self::Free)
    }

    fn is_shut(&self) -> bool {
        self.awaits_answer()
    }
}

impl Filter {
    /// Whether nothing passes until the server has answered: show its bytes to `answered`.
    pub fn awaits_answer(&self) -> bool {
        matches!(self, Self::Http(requests) if requests.awaits_answer())
    }

    /// All that the server has answered so far. Returns false as long as that does not tell whether the client may go on.
    pub fn answered(&mut self, bytes: &[u8]) -> bool {
        let Self::Http(requests) = self else { return true };
        let told = requests.answered(bytes);
        if requests.have_ended() {
            *self = Self::Free;
        }
        told
    }
}

#[cfg(test)]
mod tests;
