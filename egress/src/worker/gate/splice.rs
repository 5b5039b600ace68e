//! Both ways of a flow, until both have ended or nothing has been said for too long. Each way ends by itself (half-close).
//!
//! Not here: how bytes get from one socket to the other (`way`), and when the policy ends it (`flow`).

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::admit::Denied;
use super::filter::Filter;
use super::refusal::Refusal;
use super::way::{Sieve, Stop, Way};

/// How a flow ended.
#[derive(Debug)]
pub enum End {
    /// Both ends have said all.
    Closed,
    /// One of them broke it.
    Broken,
    /// Nothing was said for too long.
    Idle,
    /// It may not be any longer.
    Cut(Denied),
    /// The client said what it may not.
    Refused(Refusal),
}

/// Both ways.
pub struct Splice<'s> {
    client: &'s TcpStream,
    server: &'s TcpStream,
    filter: Filter,
    out: Way,
    back: Way,
    /// The first bytes of an answer that `filter` waits for.
    answer: Vec<u8>,
    /// When something was carried last; since when something is held back.
    moved: Instant,
    holding: Option<Instant>,
}

/// What comes back passes; the filter is shown what it waits for.
struct Back<'b> {
    filter: &'b mut Filter,
    answer: &'b mut Vec<u8>,
}

impl Sieve for Back<'_> {
    fn pass(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        if self.filter.awaits_answer() {
            self.answer.extend_from_slice(bytes);
            if self.filter.answered(self.answer) {
                *self.answer = Vec::new();
            }
        }
        Ok(bytes.len())
    }

    fn ended(&mut self, _rest: &[u8]) -> Result<(), Refusal> {
        Ok(())
    }

    fn is_free(&self) -> bool {
        self.filter.is_free() || !self.filter.awaits_answer()
    }

    fn is_shut(&self) -> bool {
        false
    }
}

impl<'s> Splice<'s> {
    /// Neither way has begun, except that `said` was heard of the client.
    pub fn new(client: &'s TcpStream, server: &'s TcpStream, filter: Filter, said: Way) -> Self {
        let (back, answer) = (Way::default(), Vec::new());
        Self { client, server, filter, out: said, back, answer, moved: Instant::now(), holding: None }
    }

    /// Bytes carried out of the sandbox, and back into it.
    pub fn carried(&self) -> (u64, u64) {
        (self.out.carried(), self.back.carried())
    }

    /// How far the filter has come.
    pub fn into_filter(self) -> Filter {
        self.filter
    }

    /// Carries on until the flow ends. May be dropped and called again: nothing is lost.
    pub async fn run(&mut self, idle: Duration, head: Duration) -> End {
        let mut timer = pin!(sleep_until(self.moved + idle));
        poll_fn(|cx| {
            if let Poll::Ready(end) = self.poll(cx) {
                return Poll::Ready(end);
            }
            loop {
                let due = self.holding.map_or(self.moved + idle, |since| (since + head).min(self.moved + idle));
                // What is said puts the end off; the timer finds out only when it fires.
                if timer.deadline() > due || timer.is_elapsed() {
                    timer.as_mut().reset(due);
                }
                std::task::ready!(timer.as_mut().poll(cx));
                let now = Instant::now();
                if self.holding.is_some_and(|since| since + head <= now) {
                    return Poll::Ready(End::Refused(Refusal::TooSlow));
                }
                if self.moved + idle <= now {
                    return Poll::Ready(End::Idle);
                }
            }
        })
        .await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let before = self.carried();
        // Back first: an answer may let the client go on.
        let mut back = Back { filter: &mut self.filter, answer: &mut self.answer };
        let ended_back = self.back.poll(cx, self.server, self.client, &mut back);
        let ended_out = match &ended_back {
            Poll::Ready(Err(_)) => Poll::Pending,
            _ => self.out.poll(cx, self.client, self.server, &mut self.filter),
        };
        let moved = self.carried() != before;
        if moved {
            self.moved = Instant::now();
        }
        let holds = self.out.holds_back() && !self.filter.awaits_answer();
        self.holding = holds.then(|| self.holding.filter(|_| !moved).unwrap_or_else(Instant::now));
        match (ended_back, ended_out) {
            (Poll::Ready(Err(stop)), _) | (_, Poll::Ready(Err(stop))) => Poll::Ready(match stop {
                Stop::Broken => End::Broken,
                Stop::Refused(refusal) => End::Refused(refusal),
            }),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(End::Closed),
            _ => Poll::Pending,
        }
    }
}
