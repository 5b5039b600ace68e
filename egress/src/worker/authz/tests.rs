//! What becomes of questions: with a decision point of the tests' own, which answers what it is told to.

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinSet, yield_now};
use tokio::time;

use super::authzen::Service;
use super::cedar::Texts;
use super::fake::{Pdp, answer, authz, says};
use super::question::tests::question;
use super::*;
use crate::policy::{CompiledPolicy, Fqdn, Policy};
use crate::worker::Effective;

async fn later(seconds: u64) {
    time::pause();
    time::advance(Duration::from_secs(seconds)).await;
    time::resume();
}

#[tokio::test]
async fn without_a_decision_point_everything_is_refused() {
    let authz = Authz::new();
    assert_eq!(authz.decide(&question("example.org")).await, Err(Undecided::NoDecisionPoint));
    assert_eq!(authz.pending(), []);
}

#[tokio::test]
async fn a_grant_counts_for_its_time_and_a_refusal_for_a_shorter_one() {
    let pdp = Pdp::start().await;
    let (authz, question) = (pdp.authz(), question("example.org"));
    for (decision, verdict, seconds) in [("true", Verdict::Granted, 30), ("false", Verdict::Refused, 5)] {
        pdp.answers(says(decision));
        let before = pdp.asked();
        assert_eq!(authz.decide(&question).await, Ok(verdict));
        later(seconds - 1).await;
        assert_eq!(authz.decide(&question).await, Ok(verdict));
        assert_eq!(pdp.asked(), before + 1);
        later(1).await;
    }
    pdp.answers(says("true"));
    assert_eq!(authz.decide(&question).await, Ok(Verdict::Granted));
}

#[tokio::test]
async fn fifty_that_ask_at_once_ask_once_even_if_the_first_one_leaves() {
    let pdp = Pdp::start().await;
    pdp.close();
    let (authz, question) = (pdp.authz(), question("example.org"));
    let ask = || {
        let (authz, question) = (authz.clone(), question.clone());
        async move { authz.decide(&question).await }
    };
    let first = tokio::spawn(ask());
    while pdp.asked() == 0 {
        yield_now().await;
    }
    let asking: JoinSet<_> = (0..50).map(|_| ask()).collect();
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let pending = authz.pending();
    let [Pending { sandbox, destination, port: 443, .. }] = pending.as_slice() else { panic!("{pending:?}") };
    assert_eq!((sandbox.to_string().as_str(), destination.as_str()), ("default/s1", "example.org"));
    pdp.gate.add_permits(1); // a second question would wait for ever
    assert_eq!(asking.join_all().await, vec![Ok(Verdict::Granted); 50]);
    assert_eq!((pdp.asked(), authz.pending().len()), (1, 0));
}

#[tokio::test]
async fn a_decision_point_that_is_down_or_slow_refuses() {
    let pdp = Pdp::start().await;
    pdp.close();
    let mut setup = pdp.setup();
    setup.limits.deadline = Duration::from_millis(20);
    let slow = authz(setup).decide(&question("example.org")).await;
    assert_eq!(slow, Err(Undecided::Deadline(Duration::from_millis(20))));
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (url, addresses) = (format!("http://{free}"), vec![]);
    let point = DecisionPoint::AuthZen(Service { url, addresses, ca: None, token: None });
    let down = authz(Setup { point, ..pdp.setup() }).decide(&question("example.org")).await;
    assert!(matches!(&down, Err(Undecided::Unreachable(why)) if why.contains("refused")), "{down:?}");
}

#[tokio::test]
async fn a_flapping_decision_point_is_left_alone_and_tried_again() {
    let pdp = Pdp::start().await;
    let (authz, broken) = (pdp.authz(), answer("503 Service Unavailable", "text/plain", ""));
    let ask = async |n: usize| authz.decide(&question(&format!("h{n}.example.org"))).await;
    for round in 0..2 {
        pdp.answers(&broken);
        let before = pdp.asked();
        for n in 0..5 {
            assert_eq!(ask(n).await, Err(Undecided::NoAnswer("status 503".into())), "{round}");
        }
        assert!(matches!(ask(5).await, Err(Undecided::Broken)), "{round}");
        later(5).await;
        assert_eq!(ask(6).await, Err(Undecided::NoAnswer("status 503".into())), "{round}: the trial");
        assert!(matches!(ask(7).await, Err(Undecided::Broken)), "{round}");
        assert_eq!(pdp.asked(), before + 6, "{round}");
        later(5).await;
        pdp.answers(says("true"));
        for n in 0..5 {
            assert_eq!(ask(100 * (round + 1) + n).await, Ok(Verdict::Granted), "{round}");
        }
    }
    pdp.answers(&broken);
    assert_eq!(ask(100).await, Ok(Verdict::Granted), "what was granted goes on counting for its time");
}

#[tokio::test]
async fn what_is_revoked_is_asked_again_and_granted_to_nobody_who_waits() {
    let pdp = Pdp::start().await;
    let (authz, question) = (pdp.authz(), question("example.org"));
    let mut other = question.clone();
    other.sandbox.id = "s2".into();
    for question in [&question, &other] {
        assert_eq!(authz.decide(question).await, Ok(Verdict::Granted));
    }
    authz.revoke(&question.sandbox);
    pdp.close();
    let waiting = tokio::spawn({
        let (authz, question) = (authz.clone(), question.clone());
        async move { authz.decide(&question).await }
    });
    while pdp.asked() < 3 {
        yield_now().await;
    }
    authz.revoke(&question.sandbox);
    assert_eq!(authz.pending(), []);
    pdp.gate.add_permits(1);
    assert_eq!(waiting.await.unwrap(), Err(Undecided::Superseded));
    assert_eq!(authz.decide(&other).await, Ok(Verdict::Granted));
    assert_eq!(pdp.asked(), 3, "another sandbox's grants stay");
}

#[tokio::test]
async fn a_new_decision_point_answers_even_what_the_old_one_was_asked() {
    let (old, new) = (Pdp::start().await, Pdp::start().await);
    let (authz, question) = (old.authz(), question("example.org"));
    assert_eq!(authz.decide(&question).await, Ok(Verdict::Granted));
    assert_eq!(authz.set_up(old.setup()).unwrap(), 1, "the same one again is no change");
    let bad =
        Setup { point: DecisionPoint::Cedar(Texts { policies: "permit".into(), ..Texts::default() }), ..old.setup() };
    assert!(authz.set_up(bad).unwrap_err().to_string().starts_with("policies: "));
    assert_eq!(authz.decide(&question).await, Ok(Verdict::Granted));
    assert_eq!(old.asked(), 1, "a bad one changes nothing, not even what is remembered");

    old.close();
    let mut second = question.clone();
    second.port = 80;
    let waiting = tokio::spawn({
        let (authz, second) = (authz.clone(), second.clone());
        async move { authz.decide(&second).await }
    });
    while old.asked() < 2 {
        yield_now().await;
    }
    new.answers(says("false"));
    assert_eq!(authz.set_up(new.setup()).unwrap(), 2);
    old.gate.add_permits(1);
    assert_eq!(waiting.await.unwrap(), Ok(Verdict::Refused));
    assert_eq!(authz.decide(&question).await, Ok(Verdict::Refused), "what the old one granted counts no more");
    assert_eq!((old.asked(), new.asked()), (2, 2));
    assert_eq!(authz.set_up(Setup::default()).unwrap(), 3);
    assert_eq!(authz.decide(&question).await, Err(Undecided::NoDecisionPoint));
}

#[tokio::test]
async fn another_policy_of_the_sandbox_wants_another_decision() {
    let pdp = Pdp::start().await;
    let authz = pdp.authz();
    let effective =
        |generation| Some(Arc::new(Effective { policy: CompiledPolicy::new(Policy::default()), generation }));
    let (policies, watching) = watch::channel(effective(1));
    let Question { sandbox, agent, .. } = question("example.org");
    let binding = Arc::new(Binding { sandbox, agent, effective: watching });
    let name = Fqdn::parse("example.org").unwrap();
    let ask = || {
        let (authz, binding, name) = (authz.clone(), binding.clone(), name.clone());
        async move { authz.authorize(&binding, Authorizable::Name(&name), 443).await }
    };
    assert_eq!(ask().await, Ok(()));
    assert_eq!(ask().await, Ok(()));
    assert_eq!(pdp.asked(), 1);
    policies.send_replace(effective(2));
    pdp.answers(says("false"));
    assert_eq!(ask().await, Err(Unauthorized::Refused));
    assert_eq!(pdp.asked(), 2);

    pdp.answers(says("true"));
    pdp.close();
    policies.send_replace(effective(3));
    let waiting = tokio::spawn(ask());
    while pdp.asked() < 3 {
        yield_now().await;
    }
    policies.send_replace(effective(4));
    pdp.gate.add_permits(1);
    assert_eq!(waiting.await.unwrap(), Err(Unauthorized::Undecided(Undecided::Superseded.to_string())));
    policies.send_replace(None);
    assert_eq!(ask().await, Err(Unauthorized::Undecided(Undecided::Detached.to_string())));
    assert_eq!(pdp.asked(), 3);
}
