//! An answer as bytes. None is longer than 512 bytes, so that none is ever cut short: over UDP there is no need for TCP.

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::rdata::{PTR, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::answer::{Answer, Refusal};
use super::question::{Frame, LONGEST, Question};

/// The option that says why (RFC 8914 §2).
const EXTENDED_ERROR: u16 = 15;
/// How much is said: enough for a rule's id, and the answer stays within 512 bytes with the longest name.
const LONGEST_REASON: usize = 96;

/// The answer to a question; `ttl` in seconds.
pub fn reply(question: &Question, answer: &Answer, ttl: u32) -> Result<Vec<u8>, ProtoError> {
    let mut message = frame(&question.frame);
    message.add_query(Query::query(question.name.clone(), question.kind));
    let record = |data| Record::from_rdata(question.name.clone(), ttl, data);
    match answer {
        Answer::Address(address) => {
            message.add_answer(record(RData::A((*address).into())));
        }
        Answer::Loopback => {
            message.add_answer(record(match question.kind {
                RecordType::AAAA => RData::AAAA(Ipv6Addr::LOCALHOST.into()),
                _ => RData::A(Ipv4Addr::LOCALHOST.into()),
            }));
        }
        Answer::Pointer(name) => {
            let name = Name::from_ascii(format!("{name}."))?;
            message.add_answer(record(RData::PTR(PTR(name))));
        }
        Answer::NoData => {
            message.add_authority(record(authority(ttl)?));
        }
        Answer::NoSuchName(refusal) => {
            message.metadata.response_code = ResponseCode::NXDomain;
            message.add_authority(record(authority(ttl)?));
            explain(&mut message, refusal);
        }
        Answer::Refused(refusal) => {
            message.metadata.response_code = ResponseCode::Refused;
            explain(&mut message, refusal);
        }
    }
    message.to_vec()
}

/// The answer to what is not a question that can be answered.
pub fn error(asked: &Frame, code: ResponseCode) -> Result<Vec<u8>, ProtoError> {
    let mut message = frame(asked);
    message.metadata.response_code = code;
    message.to_vec()
}

fn frame(asked: &Frame) -> Message {
    let mut message = Message::response(asked.id, asked.op_code);
    message.metadata.recursion_desired = asked.recursion_desired;
    message.metadata.recursion_available = asked.op_code == OpCode::Query;
    if asked.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(LONGEST as u16);
        message.set_edns(edns);
    }
    message
}

/// What says how long "nothing" may be kept (RFC 2308): a record of the name itself, as no zone of it is known here.
fn authority(ttl: u32) -> Result<RData, ProtoError> {
    let (server, contact) = (Name::from_ascii("creto-egress.invalid.")?, Name::from_ascii("nobody.invalid.")?);
    Ok(RData::SOA(SOA::new(server, contact, 1, 3600, 600, 86_400, ttl)))
}

/// Says why, to a client that speaks EDNS.
fn explain(message: &mut Message, refusal: &Refusal) {
    let code: u16 = match refusal {
        Refusal::Denied { .. } | Refusal::NoHost | Refusal::TooLong { .. } => 15, // Blocked
        Refusal::Kind(_) | Refusal::Class | Refusal::NoPointer | Refusal::NoSandbox => 18, // Prohibited
        Refusal::NoAddress(_) => 0,                                               // Other
    };
    let Some(edns) = &mut message.edns else { return };
    let mut text = refusal.to_string();
    while text.len() > LONGEST_REASON {
        text.pop();
    }
    let data = [&code.to_be_bytes()[..], text.as_bytes()].concat();
    edns.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR, data));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::policy::{Fqdn, Reason};

    fn question(name: Name, kind: RecordType, edns: bool) -> Question {
        Question { frame: Frame { id: 7, op_code: OpCode::Query, recursion_desired: true, edns }, name, kind }
    }

    fn read(bytes: &[u8]) -> Message {
        Message::from_vec(bytes).unwrap()
    }

    #[test]
    fn a_refusal_says_why_to_a_client_that_can_read_it() {
        let denied = Refusal::Denied { rule: Some("no-uploads".to_owned()), reason: Reason::Rule };
        let name = Name::from_ascii("evil.example.org.").unwrap();
        for edns in [true, false] {
            let bytes =
                reply(&question(name.clone(), RecordType::A, edns), &Answer::Refused(denied.clone()), 30).unwrap();
            let message = read(&bytes);
            assert_eq!(message.metadata.response_code, ResponseCode::Refused);
            let option = message.edns.as_ref().and_then(|edns| edns.option(EXTENDED_ERROR.into()).cloned());
            let expected = [&[0, 15][..], b"rule no-uploads: the rule says so"].concat();
            assert_eq!(option, edns.then_some(EdnsOption::Unknown(EXTENDED_ERROR, expected)));
        }
    }

    #[test]
    fn an_address_has_the_name_that_was_asked_for_in_its_case() {
        let name = Name::from_ascii("aPi.ExaMple.com.").unwrap();
        let address = Ipv4Addr::new(198, 18, 3, 4);
        let message = read(&reply(&question(name, RecordType::A, false), &Answer::Address(address), 30).unwrap());
        let [record] = &message.answers[..] else { panic!("{message:?}") };
        assert_eq!((record.name.to_ascii().as_str(), record.ttl), ("aPi.ExaMple.com.", 30));
        assert_eq!(record.data, RData::A(address.into()));
        assert!(message.metadata.recursion_available && !message.metadata.truncation && message.edns.is_none());
    }

    #[test]
    fn nothing_may_be_kept_for_as_long_as_an_address() {
        let name = Name::from_ascii("api.example.com.").unwrap();
        let message = read(&reply(&question(name, RecordType::AAAA, true), &Answer::NoData, 30).unwrap());
        assert_eq!((message.metadata.response_code, message.answers.len()), (ResponseCode::NoError, 0));
        let RData::SOA(soa) = &message.authorities[0].data else { panic!("{message:?}") };
        assert_eq!((message.authorities[0].ttl, soa.minimum), (30, 30));
    }

    fn any_name() -> impl Strategy<Value = Name> {
        let label = prop::collection::vec(any::<u8>(), 1..=63);
        prop::collection::vec(label, 0..5).prop_filter_map("too long", |labels| Name::from_labels(labels).ok())
    }

    proptest! {
        #[test]
        fn every_answer_is_well_formed_and_fits_into_512_bytes(name in any_name(), edns: bool, rule in ".{0,300}", which in 0..7usize) {
            let longest = Fqdn::parse(&[&"a".repeat(63); 4].map(|l| l.as_str()).join(".")[..253]).unwrap();
            let denied = Refusal::Denied { rule: Some(rule), reason: Reason::Special };
            let answer = [
                Answer::Address(Ipv4Addr::LOCALHOST), Answer::Loopback, Answer::Pointer(Arc::new(longest)), Answer::NoData,
                Answer::NoSuchName(denied.clone()), Answer::Refused(denied), Answer::Refused(Refusal::Kind(RecordType::TXT)),
            ][which].clone();
            // A pointer is never asked for by a name of more than 30 bytes.
            let name = if which == 2 { Name::from_ascii("255.255.19.198.in-addr.arpa.").unwrap() } else { name };
            let bytes = reply(&question(name.clone(), RecordType::A, edns), &answer, 30).unwrap();
            prop_assert!(bytes.len() <= 512, "{}", bytes.len());
            let message = read(&bytes);
            prop_assert_eq!((message.metadata.id, message.edns.is_some(), message.queries[0].name()), (7, edns, &name));
        }
    }
}
