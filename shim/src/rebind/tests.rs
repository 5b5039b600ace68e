//! What is asked is read whole, or refused and named.

use proptest::prelude::*;

use super::*;
use crate::backend::Place;
use crate::events::Events;

fn request() -> RebindRequest {
    RebindRequest {
        sandbox: "c1".into(),
        claim_id: "c-1".into(),
        agent: "spiffe://example.org/agents/a".into(),
        proven: Proven::Token as i32,
        policy: Some(api::Policy::named("web")),
        secrets: vec!["file:db".into(), "command:token".into()],
        pool: "agents".into(),
        pool_generation: "7".into(),
    }
}

#[test]
fn a_claim_is_read_whole_or_what_is_wrong_is_named() {
    let (sandbox, asked) = claim(&request().encode_to_vec()).unwrap();
    assert_eq!((sandbox.as_str(), asked.claim.to_string().as_str(), asked.by_token), ("c1", "c-1", true));
    assert_eq!((asked.policy, asked.secrets.len()), (Some(PolicyRef::Named("web".into())), 2));
    let bare = RebindRequest {
        agent: String::new(),
        proven: 0,
        policy: None,
        secrets: vec![],
        pool_generation: String::new(),
        ..request()
    };
    let (_, asked) = claim(&bare.encode_to_vec()).unwrap();
    assert_eq!((asked.agent, asked.by_token, asked.policy, asked.generation), (None, false, None, None));
    let inline = |json: &str| RebindRequest { policy: Some(api::Policy::inline(json)), ..request() };
    for (expected, request) in [
        ("claim_id: ", RebindRequest { claim_id: "../c".into(), ..request() }),
        ("claim_id: ", RebindRequest { claim_id: String::new(), ..request() }),
        ("pool: ", RebindRequest { pool: String::new(), ..request() }),
        ("pool_generation: ", RebindRequest { pool_generation: "a b".into(), ..request() }),
        ("agent: ", RebindRequest { agent: "spiffe://Example.org/a".into(), ..request() }),
        ("proven: ", RebindRequest { proven: 0, ..request() }),
        ("proven: ", RebindRequest { proven: 9, ..request() }),
        ("policy: ", RebindRequest { policy: Some(api::Policy { policy: None }), ..request() }),
        ("policy: ", RebindRequest { policy: Some(api::Policy::named("a/b")), ..request() }),
        ("policy: ", inline("{")),
        ("rule 1: destination: missing", inline(r#"{"rules": [{}]}"#)),
        ("give file:NAME", RebindRequest { secrets: vec!["env:HOME".into()], ..request() }),
        ("named twice", RebindRequest { secrets: vec!["file:a".into(), "command:a".into()], ..request() }),
    ] {
        let error = claim(&request.encode_to_vec()).unwrap_err();
        assert_eq!(error.code(), Code::INVALID_ARGUMENT);
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
    assert!(claim(b"\xff").unwrap_err().to_string().contains("cannot be read"));
}

#[tokio::test(flavor = "current_thread")]
async fn a_sandbox_that_is_not_there_is_not_found_and_none_is_taken_for_another() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place { dir: dir.path().into(), address: String::new(), namespace: "ns".into(), group: "c1".into() };
    let pod = Arc::new(Pod::new(place, Events::new(None, "ns".into())));
    for sandbox in ["c1", "c2", ""] {
        let sandbox = sandbox.to_owned();
        let describe = DescribeRequest { sandbox: sandbox.clone() }.encode_to_vec();
        let rebind = RebindRequest { sandbox: sandbox.clone(), ..request() }.encode_to_vec();
        let update = UpdatePolicyRequest { sandbox, policy: Some(api::Policy::named("web")) }.encode_to_vec();
        for (call, bytes) in [(Call::Describe, describe), (Call::Rebind, rebind), (Call::UpdatePolicy, update)] {
            assert_eq!(answer(&pod, call, &bytes).await.unwrap_err().code(), Code::NOT_FOUND);
        }
    }
    let unsaid = UpdatePolicyRequest { sandbox: "c1".into(), policy: None }.encode_to_vec();
    assert_eq!(answer(&pod, Call::UpdatePolicy, &unsaid).await.unwrap_err().code(), Code::INVALID_ARGUMENT);
    let mut methods: Vec<_> = service(&pod)[SERVICE].methods.keys().cloned().collect();
    methods.sort();
    assert_eq!(methods, [DESCRIBE, REBIND, UPDATE_POLICY]);
}

proptest! {
    #[test]
    fn any_bytes_are_a_claim_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let Err(error) = claim(&bytes) {
            prop_assert_eq!(error.code(), Code::INVALID_ARGUMENT);
        }
    }
}
