//! Claim: Cedar decides in microseconds, so that a node without another decision point waits for none; what was decided is
//! known in less. Grown: policies (Cedar looks at each of them) and entities. Measured runs: docs/benchmarks.md.
#![allow(clippy::unwrap_used, missing_docs, reason = "a bench is its own reader, and may panic")]

use std::fmt::Write;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use egress::policy::Fqdn;
use egress::protocol::SandboxKey;
use egress::worker::authz::cedar::{Cedar, Texts};
use egress::worker::authz::question::{Host, Question};
use egress::worker::authz::setup::{DecisionPoint, Limits, Setup};
use egress::worker::authz::{Authz, Verdict};

/// One team's agents reach one zone each; the last of them is the one that asks.
fn texts(policies: usize, entities: usize, schema: bool) -> Texts {
    let mut text = String::new();
    for n in 1..=policies {
        let (team, zone) = (format!(r#"Team::"t{n}""#), format!(r#"Zone::"z{n}.example.com""#));
        let when = "when { resource.port == 443 }";
        writeln!(text, r#"permit(principal in {team}, action == Action::"connect", resource in {zone}) {when};"#)
            .unwrap();
    }
    let agents = (1..=entities).map(|n| {
        let uid = format!(r#"{{"type":"Agent","id":"spiffe://example.org/agents/{n}"}}"#);
        let team = if n == entities { policies } else { n };
        format!(r#"{{"uid":{uid},"attrs":{{}},"parents":[{{"type":"Team","id":"t{team}"}}]}}"#)
    });
    let entities = format!("[{}]", agents.collect::<Vec<_>>().join(","));
    let schema = schema.then(|| include_str!("../../configs/authz/schema.cedarschema").to_owned());
    Texts { policies: text, entities: Some(entities), schema }
}

fn question(policies: usize, entities: usize) -> Question {
    let sandbox = SandboxKey { namespace: "default".into(), id: "a".repeat(64) };
    let host = Host::Name(Fqdn::parse(&format!("www.z{policies}.example.com")).unwrap());
    let agent = Some(format!("spiffe://example.org/agents/{entities}"));
    Question { sandbox, agent, host, port: 443, generation: 1 }
}

fn cedar(c: &mut Criterion) {
    for (policies, entities, schema) in
        [(1, 1, false), (10, 10, false), (10, 10, true), (100, 10, false), (1000, 10, false), (10, 1000, false)]
    {
        let cedar = Cedar::load(&texts(policies, entities, schema)).unwrap();
        let question = question(policies, entities);
        assert_eq!(cedar.decide(&question), Ok(Verdict::Granted));
        let schema = if schema { "/schema" } else { "" };
        let name = format!("authz/cedar/{policies}_policies/{entities}_entities{schema}");
        c.bench_function(&name, |b| b.iter(|| cedar.decide(black_box(&question))));
    }
}

fn known(c: &mut Criterion) {
    let authz = Authz::new();
    let limits = Limits { ttl: std::time::Duration::from_secs(3600), ..Limits::default() };
    authz.set_up(Setup { limits, point: DecisionPoint::Cedar(texts(10, 10, false)) }).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let question = question(10, 10);
    c.bench_function("authz/known", |b| b.iter(|| runtime.block_on(authz.decide(black_box(&question)))));
}

criterion_group!(benches, cedar, known);
criterion_main!(benches);
