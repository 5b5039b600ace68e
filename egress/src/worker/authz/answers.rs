//! What was answered and what is being asked, by sandbox: an answer counts for its time, and however many ask a question at
//! once, it is asked once. Bounded for each sandbox, so that none has room at another's cost. Pure: the clock is the caller's.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

use super::question::Question;
use super::{Pending, Undecided, Verdict};
use crate::protocol::SandboxKey;

/// So many answers are remembered for a sandbox; of more the one that would have counted the shortest is forgotten.
const MOST_ANSWERS: usize = 1024;
/// So many questions of a sandbox may be under way at once.
const MOST_PENDING: usize = 64;

/// What a question comes to.
pub type Answer = Result<Verdict, Undecided>;

/// How long answers count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// A grant.
    pub granted: Duration,
    /// A refusal. What is no answer does not count at all.
    pub refused: Duration,
}

/// Answers and pending questions.
#[derive(Debug, Default)]
pub struct Answers {
    sandboxes: HashMap<SandboxKey, Known>,
    flights: u64,
}

#[derive(Debug, Default)]
struct Known {
    answers: HashMap<Question, (Verdict, Instant)>,
    pending: HashMap<Question, Flight>,
}

#[derive(Debug)]
struct Flight {
    number: u64,
    since: SystemTime,
    answer: Landing,
}

/// Where the answer to a pending question arrives.
pub type Landing = watch::Receiver<Option<Answer>>;

/// Who must ask a question, and tell what came of it.
#[derive(Debug)]
pub struct Asker {
    number: u64,
    waiting: watch::Sender<Option<Answer>>,
}

/// What is known of a question.
#[derive(Debug)]
pub enum Look {
    /// The answer.
    Answered(Verdict),
    /// It is being asked.
    Pending(Landing),
    /// It must be asked, by whoever looked.
    Ask(Asker, Landing),
}

impl Answers {
    /// What is known of a question; `may_ask` says whether it may be asked if nothing is.
    pub fn look(
        &mut self,
        question: &Question,
        now: Instant,
        may_ask: impl FnOnce() -> Result<(), Undecided>,
    ) -> Result<Look, Undecided> {
        let known = self.sandboxes.entry(question.sandbox.clone()).or_default();
        match known.answers.get(question) {
            Some((verdict, until)) if now < *until => return Ok(Look::Answered(*verdict)),
            Some(_) => drop(known.answers.remove(question)),
            None => (),
        }
        match known.pending.get(question) {
            // An asker that has vanished (a panic) keeps nobody from asking again.
            Some(flight) if flight.answer.has_changed().is_ok() => return Ok(Look::Pending(flight.answer.clone())),
            Some(_) => drop(known.pending.remove(question)),
            None => (),
        }
        if known.pending.len() >= MOST_PENDING {
            return Err(Undecided::Crowded(MOST_PENDING));
        }
        may_ask()?;
        self.flights += 1;
        let (waiting, answer) = watch::channel(None);
        let flight = Flight { number: self.flights, since: SystemTime::now(), answer: answer.clone() };
        known.pending.insert(question.clone(), flight);
        Ok(Look::Ask(Asker { number: self.flights, waiting }, answer))
    }

    /// Tells everybody who waits, and remembers a verdict for its time. What was forgotten in between is told as superseded.
    pub fn land(&mut self, question: &Question, asker: Asker, answer: Answer, now: Instant, times: &Times) {
        let current = self
            .sandboxes
            .get_mut(&question.sandbox)
            .filter(|known| known.pending.get(question).is_some_and(|flight| flight.number == asker.number));
        let Some(known) = current else {
            asker.waiting.send_replace(Some(Err(Undecided::Superseded)));
            return;
        };
        known.pending.remove(question);
        if let Ok(verdict) = answer {
            let time = if verdict == Verdict::Granted { times.granted } else { times.refused };
            known.remember(question.clone(), verdict, now, now + time);
        }
        asker.waiting.send_replace(Some(answer));
    }

    /// Forgets all that is known for a sandbox.
    pub fn forget(&mut self, sandbox: &SandboxKey) {
        self.sandboxes.remove(sandbox);
    }

    /// Forgets everything.
    pub fn forget_all(&mut self) {
        self.sandboxes.clear();
    }

    /// The questions that are being asked, the oldest first.
    pub fn pending(&self) -> Vec<Pending> {
        let all = self.sandboxes.values().flat_map(|known| &known.pending);
        let mut pending: Vec<_> = all
            .map(|(Question { sandbox, host, port, .. }, flight)| Pending {
                sandbox: sandbox.clone(),
                destination: host.to_string(),
                port: *port,
                since: flight.since,
            })
            .collect();
        pending.sort_by_key(|pending| pending.since);
        pending
    }
}

impl Known {
    fn remember(&mut self, question: Question, verdict: Verdict, now: Instant, until: Instant) {
        if self.answers.len() >= MOST_ANSWERS {
            self.answers.retain(|_, (_, until)| now < *until);
        }
        if self.answers.len() >= MOST_ANSWERS
            && let Some(first) = self.answers.iter().min_by_key(|(_, (_, until))| *until).map(|(key, _)| key.clone())
        {
            self.answers.remove(&first);
        }
        self.answers.insert(question, (verdict, until));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::authz::question::tests::question;

    const TIMES: Times = Times { granted: Duration::from_secs(30), refused: Duration::from_secs(5) };

    fn ask(answers: &mut Answers, question: &Question, now: Instant, answer: Answer) -> Landing {
        let Ok(Look::Ask(asker, landing)) = answers.look(question, now, || Ok(())) else { panic!("it is known") };
        answers.land(question, asker, answer, now, &TIMES);
        landing
    }

    fn known(answers: &mut Answers, question: &Question, now: Instant) -> Option<Verdict> {
        match answers.look(question, now, || Err(Undecided::NoDecisionPoint)) {
            Ok(Look::Answered(verdict)) => Some(verdict),
            Ok(other) => panic!("{other:?}"),
            Err(_) => None,
        }
    }

    #[test]
    fn a_grant_counts_for_its_time_a_refusal_for_a_shorter_one_and_a_failure_not_at_all() {
        let now = Instant::now();
        let question = question("example.org");
        for (answer, seconds) in
            [(Ok(Verdict::Granted), 30), (Ok(Verdict::Refused), 5), (Err(Undecided::Unreachable("x".into())), 0)]
        {
            let mut answers = Answers::default();
            let landing = ask(&mut answers, &question, now, answer.clone());
            assert_eq!(*landing.borrow(), Some(answer.clone()));
            let ends = now + Duration::from_secs(seconds);
            if let Some(before) = ends.checked_sub(Duration::from_millis(1)).filter(|before| *before >= now) {
                assert_eq!(known(&mut answers, &question, before), answer.ok());
            }
            assert_eq!(known(&mut answers, &question, ends), None);
        }
    }

    #[test]
    fn an_answer_is_for_its_own_question_alone() {
        let now = Instant::now();
        let asked = question("example.org");
        let mut answers = Answers::default();
        ask(&mut answers, &asked, now, Ok(Verdict::Granted));
        let changed = |change: fn(&mut Question)| {
            let mut other = asked.clone();
            change(&mut other);
            other
        };
        for other in [
            changed(|q| q.port = 80),
            changed(|q| q.generation = 2),
            changed(|q| q.agent = None),
            changed(|q| q.sandbox.id = "s2".into()),
            changed(|q| q.sandbox.namespace = "k8s.io".into()),
            question("www.example.org"),
            question("192.0.2.1"),
        ] {
            assert_eq!(known(&mut answers, &other, now), None, "{other:?}");
        }
        assert_eq!(known(&mut answers, &asked, now), Some(Verdict::Granted));
    }

    #[test]
    fn what_was_forgotten_while_it_was_asked_is_granted_to_nobody() {
        let now = Instant::now();
        let question = question("example.org");
        for forget in
            [|a: &mut Answers, q: &Question| a.forget(&q.sandbox), |a: &mut Answers, _: &Question| a.forget_all()]
        {
            let mut answers = Answers::default();
            let Ok(Look::Ask(old, landing)) = answers.look(&question, now, || Ok(())) else { panic!() };
            forget(&mut answers, &question);
            let Ok(Look::Ask(new, _)) = answers.look(&question, now, || Ok(())) else { panic!("it is asked anew") };
            answers.land(&question, old, Ok(Verdict::Granted), now, &TIMES);
            assert_eq!(*landing.borrow(), Some(Err(Undecided::Superseded)));
            assert_eq!(answers.pending().len(), 1, "the new question is still under way");
            answers.land(&question, new, Ok(Verdict::Refused), now, &TIMES);
            assert_eq!(known(&mut answers, &question, now), Some(Verdict::Refused));
        }
    }

    #[test]
    fn no_sandbox_has_room_without_end_or_at_anothers_cost() {
        let now = Instant::now();
        let (mut answers, mut other) = (Answers::default(), question("example.org"));
        other.sandbox.id = "other".into();
        ask(&mut answers, &other, now, Ok(Verdict::Granted));
        let numbered = |n: usize| question(&format!("h{n}.example.org"));
        for n in 0..MOST_ANSWERS + 10 {
            ask(&mut answers, &numbered(n), now + Duration::from_millis(n as u64), Ok(Verdict::Granted));
        }
        let now = now + Duration::from_secs(5);
        let kept = (0..MOST_ANSWERS + 10).filter(|n| known(&mut answers, &numbered(*n), now).is_some());
        assert_eq!(kept.collect::<Vec<_>>(), (10..MOST_ANSWERS + 10).collect::<Vec<_>>());
        let mut askers = Vec::new();
        for n in 0..MOST_PENDING {
            let Ok(Look::Ask(asker, _)) = answers.look(&numbered(5000 + n), now, || Ok(())) else { panic!() };
            askers.push(asker);
        }
        assert_eq!(answers.look(&numbered(0), now, || Ok(())).unwrap_err(), Undecided::Crowded(MOST_PENDING));
        assert_eq!(known(&mut answers, &other, now), Some(Verdict::Granted));
        other.port = 80;
        assert!(matches!(answers.look(&other, now, || Ok(())), Ok(Look::Ask(..))));
        assert_eq!(answers.pending().len(), MOST_PENDING + 1);
    }

    #[test]
    fn an_asker_that_vanished_keeps_nobody_waiting() {
        let (mut answers, question, now) = (Answers::default(), question("example.org"), Instant::now());
        drop(answers.look(&question, now, || Ok(())));
        assert!(matches!(answers.look(&question, now, || Ok(())), Ok(Look::Ask(..))));
    }
}
