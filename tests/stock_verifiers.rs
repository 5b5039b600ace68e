//! What we sign is verified by tools that are not ours: nobody needs our word, or our code, to read it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Node, parts};

/// A sandbox's envelope, the config.json that it is about, its token, and the node's keys, as files.
struct Signed {
    dir: PathBuf,
    _node: Node,
}

impl Signed {
    fn of_a_sandbox() -> Self {
        let node = Node::start();
        let dir = node.path("signed");
        fs::create_dir(&dir).unwrap();
        node.run_detached("c", &[], &["sleep", "1000"]);
        let read = |file: &str| node.exec("c", &file.replace('.', "-"), &["cat", &format!("/run/creto/{file}")]).ok();
        for file in ["attestation.dsse.json", "identity.jwt", "identity.key"] {
            fs::write(dir.join(file), read(file)).unwrap();
        }
        let pods = fs::read_dir(node.path("creto/run/sandboxes")).unwrap();
        let config =
            pods.map(|pod| pod.unwrap().path().join("bundles/c/config.json")).find(|file| file.exists()).unwrap();
        fs::copy(config, dir.join("config.json")).unwrap();
        fs::copy(node.path("creto/lib/jwks.json"), dir.join("jwks.json")).unwrap();
        fs::write(dir.join("node.pub"), node.trust_root().keys()[0].key.to_pem().unwrap()).unwrap();
        node.remove("c");
        Self { dir, _node: node }
    }

    fn cosign(&self, envelope: &str, blob: &str) -> (bool, String) {
        let mut cosign = Command::new(parts::cosign());
        cosign.args(["verify-blob-attestation", "--key", "node.pub", "--insecure-ignore-tlog=true"]);
        cosign.args(["--type", "https://creto.dev/attestation/sandbox/v1", "--new-bundle-format=false"]);
        run(cosign.args(["--signature", envelope, blob]).env("HOME", &self.dir), &self.dir)
    }

    fn python(&self, script: &str) -> (bool, String) {
        run(Command::new("python3").arg("-c").arg(script).env("PYTHONPATH", parts::verifiers()), &self.dir)
    }
}

fn run(command: &mut Command, dir: &Path) -> (bool, String) {
    let output = command.current_dir(dir).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// The same envelope with another payload byte.
fn flip(dir: &Path) {
    let text = fs::read_to_string(dir.join("attestation.dsse.json")).unwrap();
    let at = text.find("\"payload\":\"").unwrap() + 60;
    let other = if &text[at..=at] == "A" { "B" } else { "A" };
    fs::write(dir.join("flipped.json"), format!("{}{other}{}", &text[..at], &text[at + 1..])).unwrap();
}

#[test]
fn cosign_takes_a_statement_for_the_file_it_is_about_and_for_no_other() {
    let signed = Signed::of_a_sandbox();
    flip(&signed.dir);
    fs::write(signed.dir.join("other.json"), "{}").unwrap();
    let (good, said) = signed.cosign("attestation.dsse.json", "config.json");
    assert!(good && said.contains("Verified OK"), "{said}");
    for (envelope, blob) in [("flipped.json", "config.json"), ("attestation.dsse.json", "other.json")] {
        let (good, said) = signed.cosign(envelope, blob);
        assert!(!good, "{envelope} {blob}: {said}");
    }
}

#[test]
fn securesystemslib_takes_the_envelope_and_not_a_flipped_one() {
    let signed = Signed::of_a_sandbox();
    flip(&signed.dir);
    let script = |file: &str| {
        format!(
            "import json\n\
             from cryptography.hazmat.primitives.serialization import load_pem_public_key\n\
             from securesystemslib.dsse import Envelope\n\
             from securesystemslib.signer import SSlibKey\n\
             envelope = json.load(open('{file}'))\n\
             key = load_pem_public_key(open('node.pub', 'rb').read())\n\
             key = SSlibKey.from_crypto(key, keyid=envelope['signatures'][0]['keyid'])\n\
             Envelope.from_dict(envelope).verify([key], 1)\n\
             print('verified')"
        )
    };
    let (good, said) = signed.python(&script("attestation.dsse.json"));
    assert!(good && said.contains("verified"), "{said}");
    let (good, said) = signed.python(&script("flipped.json"));
    assert!(!good && said.contains("VerificationError"), "{said}");
}

#[test]
fn pyjwt_takes_the_workloads_token_and_its_key_is_the_one_it_speaks_of() {
    let signed = Signed::of_a_sandbox();
    let script = "import json, jwt\n\
                  from cryptography.hazmat.primitives.serialization import load_pem_private_key\n\
                  token = open('identity.jwt').read()\n\
                  header = jwt.get_unverified_header(token)\n\
                  keys = {k['kid']: jwt.PyJWK(k) for k in json.load(open('jwks.json'))['keys']}\n\
                  claims = jwt.decode(token, keys[header['kid']].key, algorithms=['EdDSA'])\n\
                  mine = load_pem_private_key(open('identity.key', 'rb').read(), None)\n\
                  jwt.PyJWK(claims['cnf']['jwk']).key.verify(mine.sign(b'm'), b'm')\n\
                  print(header['typ'], claims['sub'])\n\
                  jwt.decode(token[:-8] + 'AAAAAAAA', keys[header['kid']].key, algorithms=['EdDSA'])";
    let (good, said) = signed.python(script);
    assert!(said.contains("wit+jwt spiffe://creto.internal/node/") && said.contains("/sandbox/c"), "{said}");
    assert!(!good && said.contains("Signature verification failed"), "the last line must fail: {said}");
}
