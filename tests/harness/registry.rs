//! A registry on loopback, the distribution project's own, with a login and the test image in it.

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use super::{Node, images, parts, wait_until};

/// Who may pull.
pub const USER: &str = "ada";
/// By which password.
pub const PASSWORD: &str = "lovelace";
/// The same, as htpasswd(1) keeps it (bcrypt, at the least cost).
const HASHED: &str = "ada:$2b$04$w/GbYaXjjmq9IsiYmY8W5uubT76ox4lQfHLEa.QJ.n1qEyMLRdCT2\n";

/// A registry; it ends with the test.
pub struct Registry {
    child: Child,
    port: u16,
}

impl Registry {
    /// Starts it in a node's directory and pushes the test image, as [`Registry::image`].
    pub fn with_image(node: &Node) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let [users, config, log] = ["htpasswd", "registry.yml", "registry.log"].map(|name| node.path(name));
        fs::write(&users, HASHED).unwrap();
        let text = serde_json::json!({ // JSON is YAML
            "version": "0.1",
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": node.path("registry")}},
            "http": {"addr": format!("127.0.0.1:{port}")},
            "auth": {"htpasswd": {"realm": "test", "path": users}},
        });
        fs::write(&config, text.to_string()).unwrap();
        let log = fs::File::create(log).unwrap();
        let mut command = Command::new(parts::registry());
        command.arg("serve").arg(config).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let registry = Self { child: command.spawn().unwrap(), port };
        wait_until("the registry", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        let (name, login) = (registry.image("1"), format!("{USER}:{PASSWORD}"));
        node.ctr(&["image", "tag", images::BUSYBOX, &name]).ok();
        node.ctr(&["image", "push", "--plain-http", "--user", &login, &name]).ok();
        node.ctr(&["image", "rm", &name]).ok();
        registry
    }

    /// Its host and port.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The test image's name there, by tag.
    pub fn image(&self, tag: &str) -> String {
        format!("{}/team/busybox:{tag}", self.host())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
