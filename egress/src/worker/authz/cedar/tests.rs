//! What Cedar is asked, seen by what policies can say of it.

use super::*;
use crate::worker::authz::question::tests::question;

fn load(policies: &str, entities: Option<&str>, schema: Option<&str>) -> Result<Cedar, BadCedar> {
    let [entities, schema] = [entities, schema].map(|text| text.map(str::to_owned));
    Cedar::load(&Texts { policies: policies.to_owned(), entities, schema })
}

const ENTITIES: &str = r#"[
    {"uid": {"type": "Agent", "id": "spiffe://example.org/agents/a"}, "attrs": {"level": 3},
     "parents": [{"type": "Team", "id": "research"}]},
    {"uid": {"type": "Team", "id": "research"}, "attrs": {}, "parents": []},
    {"uid": {"type": "Zone", "id": "example.com"}, "attrs": {}, "parents": [{"type": "Zones", "id": "vendors"}]}
]"#;

#[test]
fn policies_can_speak_of_all_that_a_question_says() {
    for (condition, host, granted) in [
        (r#"principal == Agent::"spiffe://example.org/agents/a""#, "example.com", true),
        (r#"principal == Agent::"spiffe://example.org/agents/b""#, "example.com", false),
        (r#"principal in Team::"research" && principal.level > 2"#, "example.com", true),
        (r#"context.agent like "spiffe://example.org/agents/*""#, "example.com", true),
        (r#"action == Action::"connect""#, "example.com", true),
        (r#"resource == Destination::"example.com:443""#, "example.com", true),
        (r#"resource == Destination::"example.com:443""#, "www.example.com", false),
        (r#"resource in Zone::"example.com""#, "a.b.example.com", true),
        (r#"resource in Zone::"example.com""#, "example.com", false), // as *.example.com in a network policy
        (r#"resource in Zone::"example.com""#, "badexample.com", false),
        (r#"resource in Zone::"com""#, "example.com", true),
        (r#"resource in Zones::"vendors""#, "www.example.com", true),
        (r#"resource in Zones::"vendors""#, "www.example.org", false),
        (r#"resource.name == "example.com" && resource.host == resource.name"#, "example.com", true),
        (r#"resource has name"#, "192.0.2.1", false),
        (r#"resource has ip"#, "example.com", false),
        (r#"resource.ip.isInRange(ip("192.0.2.0/24"))"#, "192.0.2.1", true),
        (r#"resource.ip.isInRange(ip("2001:db8::/32"))"#, "2001:db8::1", true),
        (r#"resource == Destination::"[2001:db8::1]:443""#, "2001:db8::1", true),
        (r#"resource.port == 443 && context.port == 443 && context.protocol == "tcp""#, "example.com", true),
        (r#"context.sandbox == "default/s1" && context.namespace == "default""#, "example.com", true),
        (r#"context.generation == 1"#, "example.com", true),
    ] {
        let policy = format!("permit(principal, action, resource) when {{ {condition} }};");
        let verdict = load(&policy, Some(ENTITIES), None).unwrap().decide(&question(host));
        assert_eq!(verdict, Ok(if granted { Verdict::Granted } else { Verdict::Refused }), "{condition} of {host}");
    }
    let workload = r#"permit(principal == Workload::"default/s1", action, resource) unless { context has agent };"#;
    let mut anonymous = question("example.com");
    anonymous.agent = None;
    let cedar = load(workload, None, None).unwrap();
    assert_eq!(cedar.decide(&anonymous), Ok(Verdict::Granted));
    assert_eq!(cedar.decide(&question("example.com")), Ok(Verdict::Refused));
}

#[test]
fn what_nothing_permits_and_what_anything_forbids_is_refused() {
    let permit = "permit(principal, action, resource);";
    for (policies, verdict) in [
        (String::new(), Verdict::Refused),
        (permit.to_owned(), Verdict::Granted),
        (format!(r#"{permit} forbid(principal, action, resource in Zone::"com");"#), Verdict::Refused),
        (format!(r#"{permit} forbid(principal, action, resource in Zone::"org");"#), Verdict::Granted),
        (r#"permit(principal, action == Action::"listen", resource);"#.to_owned(), Verdict::Refused),
    ] {
        assert_eq!(load(&policies, None, None).unwrap().decide(&question("example.com")), Ok(verdict), "{policies}");
    }
}

/// Cedar alone would grant it: to Cedar a forbid that fails is none.
#[test]
fn a_policy_that_fails_refuses_whatever_the_others_say() {
    let policies = r#"permit(principal, action, resource);
        forbid(principal, action, resource) when { resource.ip.isLoopback() };"#;
    let cedar = load(policies, None, None).unwrap();
    let failed = cedar.decide(&question("example.com"));
    assert!(matches!(&failed, Err(Undecided::Failed(why)) if why.contains("`ip`")), "{failed:?}");
    assert_eq!(cedar.decide(&question("192.0.2.1")), Ok(Verdict::Granted));
}

const SCHEMA: &str = r#"
    entity Team;
    entity Agent in [Team] { level: Long };
    entity Zone;
    entity Destination in [Zone] { host: String, port: Long, name?: String, ip?: ipaddr };
    action connect appliesTo { principal: [Agent], resource: [Destination], context: {
        port: Long, protocol: String, sandbox: String, namespace: String, generation: Long, agent?: String } };
"#;

#[test]
fn texts_that_are_wrong_are_refused_with_the_reason() {
    let permit = "permit(principal, action, resource);";
    let agent = r#"[{"uid": {"type": "Agent", "id": "a"}, "attrs": {"level": "3"}, "parents": []}]"#;
    let destination = r#"[{"uid": {"type": "Destination", "id": "example.com:443"}, "attrs": {}, "parents": []}]"#;
    let no_port = SCHEMA.replace("port: Long, protocol", "protocol");
    let no_agent = SCHEMA.replace("[Agent], resource", "[Team], resource");
    let no_name = SCHEMA.replace("name?: String, ", "");
    let invalid = r#"permit(principal, action, resource) when { resource.name like "*.org" };"#;
    for (policies, entities, schema, why) in [
        ("permit(principal, action);", None, None, "policies: "),
        ("permit(principal == ?principal, action, resource);", None, None, "is a template"),
        (permit, Some("{}"), None, "entities: "),
        (permit, Some(destination), None, "describe its zones"),
        (permit, Some(agent), Some(SCHEMA), "entities: "),
        (permit, None, Some("entity"), "schema: "),
        (permit, None, Some(&no_port), "does not fit the questions"),
        (permit, None, Some(&no_agent), "does not fit the questions"),
        (permit, None, Some(&no_name), "does not fit the questions"),
        (invalid, None, Some(SCHEMA), "do not keep to the schema"),
        ("permit(principal in Tema::\"x\", action, resource);", None, Some(SCHEMA), "do not keep to the schema"),
    ] {
        let error = load(policies, entities, schema).err().expect(why).to_string();
        assert!(error.contains(why), "{why}: {error}");
    }
    let cedar = load(permit, Some(&agent.replace(r#""3""#, "3")), Some(SCHEMA)).unwrap();
    assert_eq!(cedar.decide(&question("example.com")), Ok(Verdict::Granted));
    let mut anonymous = question("example.com");
    anonymous.agent = None;
    let failed = cedar.decide(&anonymous);
    assert!(matches!(failed, Err(Undecided::Failed(_))), "the schema knows no workloads: {failed:?}");
}
