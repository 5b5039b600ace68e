//! What a verifier must see through.

use super::*;

#[test]
fn forged_envelopes_are_refused() {
    let world = World::new();
    let (node, attacker) = (world.keyring.signer().unwrap(), world.attacker.signer().unwrap());
    let (ours, theirs) = (node.id().as_str(), attacker.id().as_str());
    let good = world.issue(observed(), None);
    let payload = payload_of(&good);
    let kind = dsse::PAYLOAD_TYPE;
    let genuine = node.sign(&dsse::pae(kind, &payload));
    let by_attacker = attacker.sign(&dsse::pae(kind, &payload));
    let other =
        String::from_utf8(payload.clone()).unwrap().replace("research-assistant", "research-attacker!").into_bytes();
    let with = |member: &str, value: Value, mut envelope: Value| {
        envelope["signatures"][0][member] = value;
        envelope
    };
    let attackers_key = serde_json::to_value(world.attacker.list().unwrap()[0].key.to_jwk()).unwrap();
    let pem = world.attacker.list().unwrap()[0].key.to_pem().unwrap();
    let swapped = "application/vnd.oci.image.manifest.v1+json";
    for (what, envelope, why) in [
        ("attacker's signature", wire(&payload, kind, theirs, &by_attacker), "no trusted key set"),
        ("attacker's signature under our keyid", wire(&payload, kind, ours, &by_attacker), "Ed25519 signature invalid"),
        (
            "attacker's key embedded",
            with("jwk", attackers_key, wire(&payload, kind, theirs, &by_attacker)),
            "unknown field `jwk`",
        ),
        (
            "attacker's certificate embedded",
            with("cert", pem.into(), wire(&payload, kind, ours, &by_attacker)),
            "unknown field `cert`",
        ),
        ("payloadType swapped", wire(&payload, swapped, ours, &genuine), "payloadType"),
        (
            "payloadType swapped and signed so",
            wire(&payload, swapped, ours, &node.sign(&dsse::pae(swapped, &payload))),
            "payloadType",
        ),
        (
            "another payloadType was signed",
            wire(&payload, kind, ours, &node.sign(&dsse::pae(swapped, &payload))),
            "Ed25519 signature invalid",
        ),
        ("PAE skipped", wire(&payload, kind, ours, &node.sign(&payload)), "Ed25519 signature invalid"),
        ("signature over other bytes", wire(&other, kind, ours, &genuine), "Ed25519 signature invalid"),
        ("no signature", wire(&payload, kind, ours, &[]), "Ed25519 signature invalid"),
        ("signature of zeroes", wire(&payload, kind, ours, &[0; 64]), "Ed25519 signature invalid"),
        ("keyid empty", wire(&payload, kind, "", &genuine), "no trusted key set"),
        ("keyid a version", wire(&payload, kind, "v1", &genuine), "no trusted key set"),
    ] {
        let reason = world.reason(&envelope.to_string(), &lax());
        assert!(reason.contains(why), "{what}: {reason}");
    }
    let text = good.to_json().unwrap();
    world.verify(&text, &lax()).unwrap();
    for (what, envelope, why) in [
        ("payload twice", text.replacen("{\"payload\"", "{\"payload\":\"e30=\",\"payload\"", 1), "twice"),
        (
            "payload twice, escaped",
            text.replacen("{\"payload\"", "{\"p\\u0061yload\":\"e30=\",\"payload\"", 1),
            "twice",
        ),
        ("sig twice", text.replacen("\"sig\"", "\"sig\":\"AA==\",\"sig\"", 1), "twice"),
        ("no JSON", "x".into(), "not a DSSE envelope"),
        ("too long", format!("{text}{}", " ".repeat(dsse::MAX_BYTES)), "longer than"),
    ] {
        let reason = world.reason(&envelope, &lax());
        assert!(reason.contains(why), "{what}: {reason}");
    }
}

#[test]
fn a_keyid_of_another_of_our_keys_does_not_help() {
    let world = World::new();
    let first = world.keyring.signer().unwrap();
    let second = world.keyring.rotate(&world.clock, HOUR).unwrap();
    let payload = payload_of(&world.issue(observed(), None));
    let signature = first.sign(&dsse::pae(dsse::PAYLOAD_TYPE, &payload));
    let envelope = wire(&payload, dsse::PAYLOAD_TYPE, second.key.id().as_str(), &signature);
    assert_eq!(world.reason(&envelope.to_string(), &lax()), "Ed25519 signature invalid");
}

#[test]
fn genuinely_signed_bytes_that_are_no_statement_are_refused() {
    let world = World::new();
    let good = String::from_utf8(payload_of(&world.issue(observed(), None))).unwrap();
    let replaced = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replacen(from, to, 1)
    };
    let config = Digest::of(b"config").hex();
    let image = format!("\"image\":{}", serde_json::to_string(&observed().image).unwrap());
    for (what, payload, why) in [
        ("key twice", replaced("\"assurance\"", "\"image\":{\"source\":\"unknown\"},\"assurance\""), "twice"),
        ("key twice, deep down", replaced("\"seccomp\":true", "\"seccomp\":true,\"seccomp\":false"), "twice"),
        ("proof twice", replaced("\"proof\":\"token\"", "\"proof\":\"none\",\"proof\":\"token\""), "twice"),
        ("member unknown", replaced("\"assurance\"", "\"extra\":1,\"assurance\""), "extra"),
        ("agent with proof none", replaced("\"proof\":\"token\"", "\"proof\":\"none\""), "id"),
        ("other assurance", replaced("software", "hardware"), "hardware"),
        ("other statement type", replaced("in-toto.io/Statement/v1", "in-toto.io/Statement/v2"), "_type"),
        ("other predicate", replaced("sandbox/v1", "sandbox/v2"), "predicateType"),
        (
            "subject removed",
            replaced(&format!("{{\"name\":\"config.json\",\"digest\":{{\"sha256\":\"{config}\"}}}},"), ""),
            "subjects",
        ),
        (
            "subject twice",
            replaced(
                "\"subject\":[",
                &format!("\"subject\":[{{\"name\":\"policy\",\"digest\":{{\"sha256\":\"{config}\"}}}},"),
            ),
            "subjects",
        ),
        ("image subject that the predicate denies", replaced(&image, "\"image\":{\"source\":\"unknown\"}"), "subjects"),
        (
            "no subjects",
            format!("{}[]{}", &good[..good.find('[').unwrap()], &good[good.find(']').unwrap() + 1..]),
            "subjects",
        ),
        ("no time", replaced("\"issuedAt\":\"2027-01-15T08:00:00Z\"", "\"issuedAt\":1800000000"), "a string"),
        ("no JSON", "{".into(), "not a sandbox statement"),
    ] {
        let envelope = Envelope::sign(payload.into_bytes(), &world.keyring.signer().unwrap());
        let reason = world.reason(&envelope.to_json().unwrap(), &lax());
        assert!(reason.contains(why), "{what}: {reason}");
    }
}
