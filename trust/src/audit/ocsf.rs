//! Audit records as OCSF 1.8 events, for whoever collects logs. Pure.
//!
//! A sandbox's life and its proofs are API activity (6003), what runs in it process activity (1007), a refused identity an
//! authentication (3002), who may have sandboxes an account change (3001), connections network activity (4001), damage to the audit trail itself a detection finding (2004).
//! What has no place in a class stays under `unmapped`. Source: <https://schema.ocsf.io/1.8.0/>.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Map, Value, json};

use super::record::{About, AuditRecord, Connection, Event, Protocol, Text};

const VERSION: &str = "1.8.0";

/// An event class: its number, its name and its category.
#[derive(Clone, Copy)]
struct Class(u32, &'static str, u32, &'static str);

const PROCESS: Class = Class(1007, "Process Activity", 1, "System Activity");
const FINDING: Class = Class(2004, "Detection Finding", 2, "Findings");
const ACCOUNT: Class = Class(3001, "Account Change", 3, "Identity & Access Management");
const AUTHENTICATION: Class = Class(3002, "Authentication", 3, "Identity & Access Management");
const NETWORK: Class = Class(4001, "Network Activity", 4, "Network Activity");
const API: Class = Class(6003, "API Activity", 6, "Application Activity");

/// What an event is in OCSF's words: class, activity and its caption, severity.
fn classify(event: &Event) -> (Class, u32, &'static str, Severity) {
    use Severity::{High, Informational, Low, Medium};
    match event {
        Event::SandboxCreated { .. }
        | Event::SandboxRestored { .. }
        | Event::CheckpointCreated { .. }
        | Event::AttestationIssued { .. } => (API, 1, "Create", Informational),
        Event::SandboxCreateFailed { .. } => (API, 1, "Create", Low),
        Event::SandboxClaimed { .. } => (API, 3, "Update", Informational),
        Event::SandboxClaimFailed { .. } => (API, 3, "Update", Low),
        Event::SecretsDelivered { .. } => (API, 2, "Read", Informational),
        Event::KeyRotated { .. } | Event::KeyDeprecated { .. } => (API, 3, "Update", Informational),
        Event::AgentAdded { .. } => (ACCOUNT, 1, "Create", Informational),
        Event::AgentRevoked {} => (ACCOUNT, 5, "Disable", Informational),
        Event::SandboxDeleted {} => (API, 4, "Delete", Informational),
        Event::SandboxStarted { .. } | Event::ExecStarted { .. } => (PROCESS, 1, "Launch", Informational),
        Event::SandboxExited { .. } => (PROCESS, 2, "Terminate", Informational),
        Event::IdentityRejected { .. } => (AUTHENTICATION, 1, "Logon", Medium),
        Event::TokenRenewalRefused { .. } => (AUTHENTICATION, 5, "Service Ticket Renew", High),
        Event::PolicyChanged { .. } => (API, 3, "Update", Informational),
        Event::EgressAllowed { .. } | Event::AuthzRequired { .. } => (NETWORK, 1, "Open", Informational),
        Event::PortForwarded { error: None, .. } => (NETWORK, 1, "Open", Informational),
        Event::PortForwarded { error: Some(_), .. } => (NETWORK, 4, "Fail", Informational),
        Event::EgressDenied { .. } => (NETWORK, 5, "Refuse", Low),
        Event::GapOpened { .. }
        | Event::GapClosed { .. }
        | Event::RecordRejected { .. }
        | Event::FenceTampered { .. } => (FINDING, 1, "Create", High),
    }
}

#[derive(Clone, Copy, Debug)]
enum Severity {
    Informational = 1,
    Low = 2,
    Medium = 3,
    High = 4,
}

/// The OCSF event of a record; `position` is its place in the ledger, whence `metadata.sequence`.
pub fn event(record: &AuditRecord, position: u64) -> Value {
    let AuditRecord { about, event, .. } = record;
    let (Class(class, class_name, category, category_name), activity, activity_name, severity) = classify(event);
    let mut profiles = vec!["host"];
    if class == PROCESS.0 {
        profiles.push("container");
    }
    if class == NETWORK.0 {
        profiles.push("security_control");
    }
    let mut all = json!({
        "class_uid": class, "class_name": class_name,
        "category_uid": category, "category_name": category_name,
        "activity_id": activity, "activity_name": activity_name,
        "type_uid": class * 100 + activity, "type_name": format!("{class_name}: {activity_name}"),
        "severity_id": severity as u32, "severity": format!("{severity:?}"),
        "time": record.time,
        "metadata": {
            "version": VERSION,
            "product": { "name": "creto-runtime", "vendor_name": "creto", "version": env!("CARGO_PKG_VERSION") },
            "uid": record.id.to_string(), "sequence": position, "event_code": event.name(), "log_name": "audit",
            "profiles": profiles,
        },
        "device": { "hostname": record.node, "type_id": 1, "type": "Server" },
        "observables": observables(record, class),
        "unmapped": { "namespace": about.namespace, "backend": about.backend },
    });
    let parts = match class {
        1007 => process(record),
        2004 => finding(record),
        3001 => account(record),
        3002 => authentication(record),
        4001 => network(record),
        _ => api(record),
    };
    merge(&mut all, parts);
    without_nulls(all)
}

fn actor(about: &About) -> Value {
    json!({ "app_name": "creto-runtime", "user": about.agent.as_ref().map(agent) })
}

/// An agent is a user of a kind that OCSF does not list.
fn agent(id: &Text) -> Value {
    json!({ "uid": id, "name": id, "type_id": 99, "type": "Agent" })
}

fn process(record: &AuditRecord) -> Value {
    let about = &record.about;
    let container = json!({ "uid": about.sandbox, "runtime": about.backend });
    let uid = about.sandbox.as_ref().unwrap_or(&record.node);
    match &record.event {
        Event::ExecStarted { exec, program, terminal } => json!({
            "actor": actor(about),
            "process": { "uid": format!("{uid}/{exec}"), "name": program, "container": container },
            "unmapped": { "terminal": terminal },
        }),
        Event::SandboxExited { status, oom_killed } => json!({
            "actor": actor(about),
            "process": { "uid": uid, "container": container },
            "exit_code": status,
            "unmapped": { "oom_killed": oom_killed },
        }),
        Event::SandboxStarted { pid } => json!({
            "actor": actor(about),
            "process": { "uid": uid, "pid": pid, "container": container },
        }),
        _ => Value::Null,
    }
}

fn api(record: &AuditRecord) -> Value {
    let about = &record.about;
    let resource = |uid: Option<&Text>, kind: &str| json!({ "uid": uid, "type": kind });
    let sandbox = || resource(about.sandbox.as_ref(), "sandbox");
    let (resources, mut parts) = match &record.event {
        Event::SandboxCreated { image, image_digest, config_digest, policy_digest } => (
            vec![sandbox()],
            json!({ "unmapped": { "image": image, "image_digest": image_digest, "config_digest": config_digest, "policy_digest": policy_digest } }),
        ),
        Event::SandboxCreateFailed { step, error } => (
            vec![sandbox()],
            json!({ "status_id": 2, "status": "Failure", "status_detail": error, "unmapped": { "step": step } }),
        ),
        Event::AttestationIssued { statement, previous, key } => (
            vec![sandbox(), resource(Some(statement), "attestation")],
            json!({ "unmapped": { "previous": previous, "key": key } }),
        ),
        Event::CheckpointCreated { checkpoint, manifest_digest, exited } => (
            vec![sandbox(), resource(Some(checkpoint), "checkpoint")],
            json!({ "unmapped": { "manifest_digest": manifest_digest, "exited": exited } }),
        ),
        Event::SandboxRestored { checkpoint, manifest_digest } => (
            vec![sandbox(), resource(Some(checkpoint), "checkpoint")],
            json!({ "unmapped": { "manifest_digest": manifest_digest } }),
        ),
        Event::SandboxClaimed { pool, claim, policy_digest } => (
            vec![sandbox(), resource(Some(pool), "pool")],
            json!({ "unmapped": { "claim": claim, "policy_digest": policy_digest } }),
        ),
        Event::SandboxClaimFailed { pool, claim, step, error, spoilt } => (
            vec![sandbox(), resource(Some(pool), "pool")],
            json!({
                "status_id": 2, "status": "Failure", "status_detail": error,
                "unmapped": { "claim": claim, "step": step, "spoilt": spoilt },
            }),
        ),
        Event::SecretsDelivered { names } => {
            let secrets = names.iter().map(|name| json!({ "name": name, "type": "secret" }));
            ([sandbox()].into_iter().chain(secrets).collect(), json!({}))
        }
        Event::KeyRotated { purpose, key, previous } => {
            (vec![resource(Some(key), "key")], json!({ "unmapped": { "purpose": purpose, "previous": previous } }))
        }
        Event::KeyDeprecated { purpose, key } => {
            (vec![resource(Some(key), "key")], json!({ "unmapped": { "purpose": purpose } }))
        }
        _ => (vec![sandbox()], json!({})),
    };
    if parts.get("status_id").is_none() {
        merge(&mut parts, json!({ "status_id": 1, "status": "Success" }));
    }
    let always = json!({
        "actor": actor(about),
        "api": { "operation": record.event.name(), "service": { "name": "creto-runtime" } },
        "src_endpoint": { "hostname": record.node },
        "resources": resources,
    });
    merge(&mut parts, always);
    parts
}

fn authentication(record: &AuditRecord) -> Value {
    let (who, reason) = match &record.event {
        Event::IdentityRejected { claimed, reason } => (claimed, reason),
        Event::TokenRenewalRefused { reason } => (&record.about.agent, reason),
        _ => return Value::Null,
    };
    json!({
        "user": user(who.as_ref()),
        "actor": { "app_name": "creto-runtime" },
        "service": { "name": "creto-runtime" },
        "dst_endpoint": { "hostname": record.node },
        "status_id": 2, "status": "Failure", "status_detail": reason,
        "unmapped": { "sandbox": record.about.sandbox },
    })
}

fn account(record: &AuditRecord) -> Value {
    let keys = match &record.event {
        Event::AgentAdded { keys } => Some(keys),
        _ => None,
    };
    json!({
        "user": user(record.about.agent.as_ref()),
        "actor": { "app_name": "creto-runtime" },
        "src_endpoint": { "hostname": record.node },
        "status_id": 1, "status": "Success",
        "unmapped": { "keys": keys },
    })
}

/// An agent, if one is named.
fn user(id: Option<&Text>) -> Value {
    id.map_or_else(|| json!({ "name": "unknown", "type_id": 0 }), agent)
}

fn network(record: &AuditRecord) -> Value {
    let (connection, denied) = match &record.event {
        Event::PortForwarded { port, error } => return forwarded(record, *port, error.as_ref()),
        Event::EgressAllowed { connection } | Event::AuthzRequired { connection } => (connection, None),
        Event::EgressDenied { connection, reason } => (connection, Some(reason)),
        _ => return Value::Null,
    };
    let Connection { destination, port, protocol, rule, generation, count, attestation } = connection;
    let (protocol, number) = match protocol {
        Protocol::Tcp => ("tcp", 6),
        Protocol::Udp => ("udp", 17),
    };
    let verdict = match (denied, &record.event) {
        (Some(reason), _) => json!({
            "action_id": 2, "action": "Denied", "disposition_id": 2, "disposition": "Blocked",
            "status_id": 2, "status": "Failure", "status_detail": reason,
        }),
        (None, Event::AuthzRequired { .. }) => json!({
            "action_id": 3, "action": "Observed", "disposition_id": 99, "disposition": "Held", "status_id": 0, "status": "Unknown",
        }),
        (None, _) => json!({
            "action_id": 1, "action": "Allowed", "disposition_id": 1, "disposition": "Allowed",
            "status_id": 1, "status": "Success",
        }),
    };
    let mut parts = json!({
        "actor": actor(&record.about),
        "src_endpoint": { "uid": record.about.sandbox, "name": record.about.sandbox.as_ref().unwrap_or(&record.node) },
        "dst_endpoint": { place(destination): destination, "port": port },
        "connection_info": { "direction_id": 2, "direction": "Outbound", "protocol_name": protocol, "protocol_num": number },
        "firewall_rule": rule.as_ref().map(|rule| json!({ "uid": rule })),
        "count": count,
        "unmapped": { "generation": generation, "attestation": attestation },
    });
    merge(&mut parts, verdict);
    parts
}

/// From the node into the sandbox.
fn forwarded(record: &AuditRecord, port: u16, error: Option<&Text>) -> Value {
    let (status_id, status) = if error.is_some() { (2, "Failure") } else { (1, "Success") };
    let sandbox = &record.about.sandbox;
    json!({
        "actor": actor(&record.about),
        "src_endpoint": { "hostname": record.node, "name": record.node },
        "dst_endpoint": { "uid": sandbox, "name": sandbox, "ip": Ipv4Addr::LOCALHOST, "port": port },
        "connection_info": { "direction_id": 1, "direction": "Inbound", "protocol_name": "tcp", "protocol_num": 6 },
        "action_id": 1, "action": "Allowed",
        "status_id": status_id, "status": status, "status_detail": error,
    })
}

fn finding(record: &AuditRecord) -> Value {
    let (title, reason, details) = match &record.event {
        Event::GapOpened { reason } => ("Audit events are being lost", reason, json!({})),
        Event::GapClosed { first, lost, reason } => {
            ("Audit events were lost", reason, json!({ "first": first, "lost": lost }))
        }
        Event::RecordRejected { digest, reason } => {
            ("An audit record was damaged", reason, json!({ "digest": digest }))
        }
        Event::FenceTampered { expected, found, error } => {
            let details = json!({ "expected": expected, "found": found, "error": error });
            ("The rules around a sandbox were changed", expected, details)
        }
        _ => return Value::Null,
    };
    json!({
        "finding_info": { "uid": record.id.to_string(), "title": title, "desc": reason },
        "is_alert": true,
        "status_id": 1, "status": "New",
        "resources": [match &record.event {
            Event::FenceTampered { .. } => json!({ "uid": record.about.sandbox, "type": "sandbox" }),
            _ => json!({ "uid": record.id.producer.as_str(), "type": "audit producer" }),
        }],
        "unmapped": details,
    })
}

/// What one would search for, wherever it stands in the event. Types: 1 host name, 2 IP address, 31 user id, 99 other.
fn observables(record: &AuditRecord, class: u32) -> Vec<Value> {
    let mut all = vec![json!({ "name": "device.hostname", "type_id": 1, "type": "Hostname", "value": record.node })];
    let user = if [AUTHENTICATION.0, ACCOUNT.0].contains(&class) { "user.uid" } else { "actor.user.uid" };
    let agent = match &record.event {
        Event::IdentityRejected { claimed, .. } => claimed.as_ref(),
        _ if class == FINDING.0 => None,
        _ => record.about.agent.as_ref(),
    };
    if let Some(agent) = agent {
        all.push(json!({ "name": user, "type_id": 31, "type": "User Uid", "value": agent }));
    }
    if let Some(destination) = record.event.destination() {
        let place = place(destination);
        let (number, kind) = if place == "ip" { (2, "IP Address") } else { (1, "Hostname") };
        all.push(
            json!({ "name": format!("dst_endpoint.{place}"), "type_id": number, "type": kind, "value": destination }),
        );
    }
    all
}

/// An endpoint's attribute for a destination.
fn place(destination: impl AsRef<str>) -> &'static str {
    if destination.as_ref().parse::<IpAddr>().is_ok() { "ip" } else { "hostname" }
}

/// Puts the members of one object into another, and those of its objects into theirs.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// Absent is absent in OCSF, not null.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key, without_nulls(value))).collect::<Map<_, _>>())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::record::tests::{connection, one_of_each, record};

    /// What OCSF 1.8 requires of a class beyond the base attributes; of alternatives (`|`) at least one.
    fn required(class: u64) -> &'static [&'static str] {
        match class {
            1007 => &["/actor", "/device/type_id", "/process/uid|/process/pid", "/actor/app_name|/actor/user"],
            2004 => &["/finding_info/uid", "/finding_info/title"],
            3001 => &["/user/uid|/user/name"],
            3002 => &["/user/uid|/user/name", "/service|/dst_endpoint"],
            4001 => &[
                "/dst_endpoint/hostname|/dst_endpoint/ip",
                "/src_endpoint/uid|/src_endpoint/name",
                "/connection_info/direction_id",
            ],
            6003 => &["/actor/app_name|/actor/user", "/api/operation", "/src_endpoint/hostname"],
            other => panic!("class {other} is not one of ours"),
        }
    }

    #[test]
    fn every_event_has_what_its_class_requires() {
        let classes = [
            6003, 1007, 1007, 6003, 6003, 6003, 3002, 3002, 1007, 6003, 6003, 6003, 6003, 6003, 6003, 6003, 3001, 3001,
            4001, 4001, 4001, 4001, 6003, 2004, 2004, 2004, 2004,
        ];
        assert_eq!(one_of_each().len(), classes.len());
        for (happened, class) in one_of_each().into_iter().zip(classes) {
            for about in [record(0, Event::SandboxDeleted {}).about, About::default()] {
                let mut record = record(4, happened.clone());
                record.about = about;
                let (name, got) = (record.event.name(), event(&record, 12));
                let number = |pointer: &str| {
                    got.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{name}: {pointer}"))
                };
                assert_eq!(number("/class_uid"), class, "{name}");
                assert_eq!(number("/category_uid"), class / 1000, "{name}");
                assert_eq!(number("/type_uid"), class * 100 + number("/activity_id"), "{name}");
                assert!((1..=6).contains(&number("/severity_id")), "{name}");
                assert_eq!(number("/time"), 1_790_000_000_000, "{name}");
                assert_eq!(number("/metadata/sequence"), 12, "{name}");
                assert_eq!(got["metadata"]["version"], "1.8.0", "{name}");
                assert_eq!(got["metadata"]["uid"], "shim-1-00ff/4", "{name}");
                assert_eq!(got["metadata"]["event_code"], name);
                assert!(
                    got["metadata"]["product"]["name"].is_string()
                        && got["metadata"]["product"]["vendor_name"].is_string()
                );
                for required in required(class) {
                    assert!(
                        required.split('|').any(|pointer| got.pointer(pointer).is_some()),
                        "{name}: {required}: {got}"
                    );
                }
                for observable in got["observables"].as_array().unwrap() {
                    let pointer = format!("/{}", observable["name"].as_str().unwrap().replace('.', "/"));
                    assert_eq!(
                        got.pointer(&pointer),
                        Some(&observable["value"]),
                        "{name}: an observable points to what is there"
                    );
                }
                assert!(!got.to_string().contains("null"), "{name}: {got}");
            }
        }
    }

    #[test]
    fn outcomes_are_said() {
        for (happened, pointer, expected) in [
            (4, "/status", json!("Failure")),
            (4, "/status_detail", json!("creto-egress is not running")),
            (4, "/unmapped/step", json!("fence")),
            (2, "/exit_code", json!(137)),
            (7, "/status_detail", json!("agent spiffe://a/b is revoked")),
            (7, "/user/uid", json!("spiffe://example.org/agent/a")),
            (8, "/process/name", json!("/bin/sh")),
            (8, "/unmapped/namespace", json!("default")),
            (11, "/resources/1/uid", json!("agents")),
            (12, "/unmapped/spoilt", json!(true)),
            (13, "/resources/1/name", json!("db")),
            (15, "/resources/0/uid", json!("k1")),
            (16, "/unmapped/keys", json!(["2026-11"])),
            (17, "/activity_name", json!("Disable")),
            (18, "/connection_info/direction", json!("Inbound")),
            (18, "/status_detail", json!("connection was refused")),
            (19, "/action", json!("Allowed")),
            (20, "/disposition", json!("Blocked")),
            (20, "/dst_endpoint/port", json!(443)),
            (25, "/unmapped/lost", json!(3)),
            (26, "/unmapped/digest", json!("sha256:ee")),
        ] {
            let got = event(&record(0, one_of_each().swap_remove(happened)), 0);
            assert_eq!(got.pointer(pointer), Some(&expected), "{pointer} of {got}");
        }
        let denied = |to: &str| Event::EgressDenied { connection: connection(to, Protocol::Udp), reason: "x".into() };
        for (to, attribute) in [("::1", "ip"), ("192.0.2.1", "ip"), ("192.0.2.1.example", "hostname")] {
            assert_eq!(event(&record(0, denied(to)), 0)["dst_endpoint"][attribute], to);
        }
    }
}
