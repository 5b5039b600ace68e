//! Layers → snapshots, one on another; what is unpacked already is left alone. A pull unpacks on the way where containerd's transfer
//! service knows the snapshotter; this is for all other snapshotters and for images that were imported or pulled by others.

use std::collections::HashMap;
use std::time::Duration;

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, ViewSnapshotRequest,
};
use containerd_client::services::v1::{ApplyRequest, Info, UpdateRequest};
use containerd_client::types::Mount;
use prost_types::FieldMask;

use super::grpc::{BOOKS, Lease, random};
use super::images::{Content, Layer};
use super::{Containerd, ContainersError};

/// A snapshotter answers within this; some copy whole layers.
const SNAPSHOT: Duration = Duration::from_secs(60);

impl Containerd {
    /// All layers of an image, in the snapshotter.
    pub(super) async fn unpack(&self, name: &str, content: &Content, lease: &Lease) -> Result<(), ContainersError> {
        let Some(last) = content.layers.last() else { return Ok(()) };
        if self.has_snapshot(&last.chain).await? {
            return Ok(());
        }
        let mut parent = "";
        for layer in &content.layers {
            if !self.has_snapshot(&layer.chain).await? {
                self.unpack_layer(name, layer, parent, lease).await?;
            }
            parent = &layer.chain;
        }
        self.keep_with(&content.config_blob, &last.chain, lease).await
    }

    async fn unpack_layer(
        &self,
        name: &str,
        layer: &Layer,
        parent: &str,
        lease: &Lease,
    ) -> Result<(), ContainersError> {
        let doing = format!("unpacking image {name}");
        let key = format!("creto-unpack-{}", random()?);
        let labels = HashMap::from([("containerd.io/snapshot.ref".to_owned(), layer.chain.clone())]);
        // A snapshotter that knows the layer from elsewhere says that it is there already.
        let mounts = match self.prepare(&key, parent, labels, lease).await {
            Err(ContainersError::AlreadyExists(_)) => return Ok(()),
            other => other?,
        };
        let done = async {
            let within = self.settings.pull_within;
            let apply = ApplyRequest { diff: Some(layer.blob.descriptor()), mounts, ..ApplyRequest::default() };
            let applied = DiffClient::new(self.channel().await?).apply(lease.on(self.request(apply, within))).await;
            let applied = applied.map_err(|status| self.meaning(&status, &layer.blob.digest, &doing, within))?;
            let digest = applied.into_inner().applied.map(|applied| applied.digest).unwrap_or_default();
            if digest != layer.diff {
                let why = format!("its layer {} unpacks to {digest} instead of {}", layer.blob.digest, layer.diff);
                return Err(ContainersError::ImageUnusable { image: name.to_owned(), why });
            }
            self.commit(&key, &layer.chain, lease).await
        }
        .await;
        match done {
            Ok(()) => Ok(()),
            Err(error) => {
                if let Err(left) = self.remove_snapshot(&key).await {
                    tracing::warn!(key, error = %left, "a half-unpacked layer is left to containerd's garbage collection");
                }
                // Somebody else was faster.
                if matches!(error, ContainersError::AlreadyExists(_)) { Ok(()) } else { Err(error) }
            }
        }
    }

    async fn has_snapshot(&self, name: &str) -> Result<bool, ContainersError> {
        let request = StatSnapshotRequest { snapshotter: self.settings.snapshotter.clone(), key: name.to_owned() };
        let found = SnapshotsClient::new(self.channel().await?).stat(self.request(request, BOOKS)).await;
        match found.map_err(|status| self.meaning(&status, name, "looking for a snapshot", BOOKS)) {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A snapshot to write to, on another.
    pub(super) async fn prepare(
        &self,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
        lease: &Lease,
    ) -> Result<Vec<Mount>, ContainersError> {
        let (snapshotter, key, parent) = (self.settings.snapshotter.clone(), key.to_owned(), parent.to_owned());
        let request = PrepareSnapshotRequest { snapshotter, key: key.clone(), parent, labels };
        let request = lease.on(self.request(request, SNAPSHOT));
        let made = SnapshotsClient::new(self.channel().await?).prepare(request).await;
        let made = made.map_err(|status| self.meaning(&status, &key, "preparing a snapshot", SNAPSHOT))?;
        Ok(made.into_inner().mounts)
    }

    /// A snapshot to read from, under a key of its own.
    pub(super) async fn view(&self, parent: &str, lease: &Lease) -> Result<(String, Vec<Mount>), ContainersError> {
        let key = format!("creto-view-{}", random()?);
        let (snapshotter, parent) = (self.settings.snapshotter.clone(), parent.to_owned());
        let request = ViewSnapshotRequest { snapshotter, key: key.clone(), parent, labels: HashMap::new() };
        let made = SnapshotsClient::new(self.channel().await?).view(lease.on(self.request(request, SNAPSHOT))).await;
        let made = made.map_err(|status| self.meaning(&status, &key, "viewing a snapshot", SNAPSHOT))?;
        Ok((key, made.into_inner().mounts))
    }

    async fn commit(&self, key: &str, name: &str, lease: &Lease) -> Result<(), ContainersError> {
        let (snapshotter, key) = (self.settings.snapshotter.clone(), key.to_owned());
        let request = CommitSnapshotRequest { snapshotter, key, name: name.to_owned(), labels: HashMap::new() };
        let request = lease.on(self.request(request, SNAPSHOT));
        let done = SnapshotsClient::new(self.channel().await?).commit(request).await;
        done.map_err(|status| self.meaning(&status, name, "committing a snapshot", SNAPSHOT)).map(drop)
    }

    /// One that is gone already is no error.
    pub(super) async fn remove_snapshot(&self, key: &str) -> Result<(), ContainersError> {
        let request = RemoveSnapshotRequest { snapshotter: self.settings.snapshotter.clone(), key: key.to_owned() };
        let done = SnapshotsClient::new(self.channel().await?).remove(self.request(request, SNAPSHOT)).await;
        match done.map_err(|status| self.meaning(&status, key, "removing a snapshot", SNAPSHOT)) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// As long as containerd has the image, it keeps the snapshot: it follows this label of the image's config.
    async fn keep_with(&self, config: &str, chain: &str, lease: &Lease) -> Result<(), ContainersError> {
        let label = format!("containerd.io/gc.ref.snapshot.{}", self.settings.snapshotter);
        let update_mask = Some(FieldMask { paths: vec![format!("labels.{label}")] });
        let labels = HashMap::from([(label, chain.to_owned())]);
        let info = Some(Info { digest: config.to_owned(), labels, ..Info::default() });
        let request = lease.on(self.request(UpdateRequest { info, update_mask }, BOOKS));
        let done = ContentClient::new(self.channel().await?).update(request).await;
        done.map_err(|status| self.meaning(&status, config, "keeping the image's snapshot", BOOKS)).map(drop)
    }
}
