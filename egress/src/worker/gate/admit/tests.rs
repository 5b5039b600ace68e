use super::super::tests::{Decides, binding_with, policy};
use super::*;
use crate::policy::{Action, Fqdn};

#[tokio::test]
async fn the_policy_decides_and_the_decision_point_only_where_a_rule_wants_it() {
    let name = Goal::Name(Fqdn::parse("a.example.com").unwrap());
    for (action, answer, admitted, asked) in [
        (Action::Allow, Decides::No, true, 0),
        (Action::Deny, Decides::Yes, false, 0),
        (Action::RequireAuthz, Decides::Yes, true, 1),
        (Action::RequireAuthz, Decides::No, false, 1),
        (Action::RequireAuthz, Decides::Never, false, 1),
    ] {
        let (_policies, binding) = binding_with(policy(action, 443, 1));
        let count = std::cell::Cell::new(0);
        let hold = Duration::from_millis(1);
        let got = admit(&binding, &mut binding.effective.clone(), &name, 443, &answer, hold, |rule, generation| {
            assert_eq!((rule, generation), (Some("the rule"), 1));
            count.set(count.get() + 1);
        })
        .await;
        assert_eq!((got.is_ok(), count.get()), (admitted, asked), "{action:?} {answer:?}");
    }
}

#[tokio::test]
async fn a_policy_that_changes_while_the_flow_is_held_decides_in_its_place() {
    let name = Goal::Name(Fqdn::parse("a.example.com").unwrap());
    for (next, refusal) in [
        (Some(policy(Action::Allow, 443, 2)), None),
        (Some(policy(Action::Deny, 443, 2)), Some("policy")),
        (None, Some("detached")),
    ] {
        let (policies, binding) = binding_with(policy(Action::RequireAuthz, 443, 1));
        let asked = |_: Option<&str>, _| {
            policies.send_replace(next.clone());
        };
        let hold = Duration::from_secs(3600);
        let got = admit(&binding, &mut binding.effective.clone(), &name, 443, &Decides::Never, hold, asked).await;
        assert_eq!(got.err().map(|denied| denied.refusal.code()), refusal);
    }
}

#[tokio::test]
async fn nothing_is_admitted_once_nobody_can_say_what_holds() {
    let (policies, binding) = binding_with(policy(Action::Allow, 443, 1));
    drop(policies);
    let name = Goal::Name(Fqdn::parse("a.example.com").unwrap());
    assert!(check(&mut binding.effective.clone(), &name, 443).is_err());
}
