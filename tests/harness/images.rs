//! The image that tests run: busybox and its links, as an OCI archive. No registry is needed to make or to import it.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::parts;

/// The image's name in containerd.
pub const BUSYBOX: &str = "test.creto.dev/busybox:1";

/// What a pod's sandbox runs: it does nothing, for ever.
pub const PAUSE: &str = "test.creto.dev/pause:1";

/// The same root file system as an archive and as a tree of files.
pub fn archive() -> &'static [u8] {
    static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
    ARCHIVE.get_or_init(|| oci_archive(BUSYBOX, &["/bin/sh"], &layer()))
}

/// [`PAUSE`], of the same files.
pub fn pause() -> &'static [u8] {
    static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
    ARCHIVE.get_or_init(|| oci_archive(PAUSE, &["/bin/sleep", "2147483647"], &layer()))
}

/// Lays the image's root file system out in `dir`.
pub fn unpack(dir: &Path) {
    tar::Archive::new(layer().as_slice()).unpack(dir).unwrap();
}

fn layer() -> Vec<u8> {
    let path = parts::busybox();
    let program = fs::read(&path).unwrap();
    let list = Command::new(&path).arg("--list").output().unwrap();
    let mut tar = Builder::new(Vec::new());
    for (dir, mode) in [
        ("bin", 0o755),
        ("etc", 0o755),
        ("tmp", 0o1777),
        ("root", 0o700),
        ("proc", 0o555),
        ("sys", 0o555),
        ("dev", 0o755),
    ] {
        append(&mut tar, dir, mode, EntryType::Directory, &[], None);
    }
    append(&mut tar, "bin/busybox", 0o755, EntryType::Regular, &program, None);
    for applet in String::from_utf8_lossy(&list.stdout).lines().filter(|name| *name != "busybox") {
        append(&mut tar, &format!("bin/{applet}"), 0o777, EntryType::Symlink, &[], Some("busybox"));
    }
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n";
    append(&mut tar, "etc/passwd", 0o644, EntryType::Regular, passwd, None);
    append(&mut tar, "etc/group", 0o644, EntryType::Regular, b"root:x:0:\nnogroup:x:65534:\n", None);
    tar.into_inner().unwrap()
}

fn append<W: Write>(tar: &mut Builder<W>, path: &str, mode: u32, kind: EntryType, bytes: &[u8], link: Option<&str>) {
    let mut header = Header::new_gnu();
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    header.set_entry_type(kind);
    match link {
        Some(target) => tar.append_link(&mut header, path, target).unwrap(),
        None => tar.append_data(&mut header, path, bytes).unwrap(),
    }
}

fn oci_archive(name: &str, command: &[&str], layer: &[u8]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    let mut add = |kind: &str, bytes: &[u8]| -> Value {
        let digest = hex(bytes);
        append(&mut tar, &format!("blobs/sha256/{digest}"), 0o644, EntryType::Regular, bytes, None);
        json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{digest}"), "size": bytes.len()})
    };
    let layer_at = add("layer.v1.tar", layer);
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": command},
        "rootfs": {"type": "layers", "diff_ids": [layer_at["digest"]]},
    });
    let config_at = add("config.v1+json", config.to_string().as_bytes());
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config_at, "layers": [layer_at]});
    let mut manifest_at = add("manifest.v1+json", manifest.to_string().as_bytes());
    manifest_at["annotations"] = json!({"io.containerd.image.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [manifest_at]});
    append(&mut tar, "index.json", 0o644, EntryType::Regular, index.to_string().as_bytes(), None);
    append(&mut tar, "oci-layout", 0o644, EntryType::Regular, br#"{"imageLayoutVersion":"1.0.0"}"#, None);
    tar.into_inner().unwrap()
}

/// overlayfs where the directory's file system can carry it, as users have it; else native.
pub fn snapshotter(dir: &Path) -> &'static str {
    let at = |sub: &str| dir.join(sub).display().to_string();
    let layers = format!("lowerdir={},upperdir={},workdir={}", at("lower"), at("upper"), at("work"));
    let merged = dir.join("merged");
    match mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(layers.as_str())) {
        Ok(()) => {
            umount2(&merged, MntFlags::empty()).unwrap();
            "overlayfs"
        }
        Err(_) => "native",
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
