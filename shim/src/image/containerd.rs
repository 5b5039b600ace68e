//! containerd's records of a container and of its image. Only the members that are read are declared; protobuf skips others.
//! Source: containerd `api/services/{containers,images}/v1`, `api/types/descriptor.proto`, the same in 1.6 and 2.x.

use std::path::Path;

use super::grpc::{Channel, GrpcError};
use super::{Question, Recorded};

const CONTAINER: &str = "/containerd.services.containers.v1.Containers/Get";
const IMAGE: &str = "/containerd.services.images.v1.Images/Get";

#[derive(Clone, PartialEq, prost::Message)]
struct GetContainerRequest {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GetContainerResponse {
    #[prost(message, optional, tag = "1")]
    container: Option<Container>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Container {
    #[prost(string, tag = "3")]
    image: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GetImageRequest {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GetImageResponse {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageRecord>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ImageRecord {
    #[prost(message, optional, tag = "3")]
    target: Option<Descriptor>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Descriptor {
    #[prost(string, tag = "1")]
    media_type: String,
    #[prost(string, tag = "2")]
    digest: String,
}

/// Why containerd does not say.
#[derive(Debug, thiserror::Error)]
pub enum NotRecorded {
    /// It does not answer, or knows no such thing.
    #[error("containerd's record of {0}: {1}")]
    Call(String, #[source] GrpcError),
    /// Made from a directory, such as by `ctr run --rootfs`.
    #[error("containerd's record of container {0} names no image")]
    NoImage(String),
}

/// Asks for a container's image.
pub async fn ask(question: Question) -> Result<Recorded, NotRecorded> {
    let Question { address, namespace, id } = question;
    let socket = address.strip_prefix("unix://").unwrap_or(&address);
    let called = |what: String| |error| NotRecorded::Call(what, error);
    let containerd = Channel::open(Path::new(socket), &namespace).await.map_err(called(address.clone()))?;
    let response: GetContainerResponse = containerd
        .call(CONTAINER, &GetContainerRequest { id: id.clone() })
        .await
        .map_err(called(format!("container {id}")))?;
    let name = response.container.map(|container| container.image).filter(|name| !name.is_empty());
    let name = name.ok_or(NotRecorded::NoImage(id))?;
    let response: GetImageResponse = containerd
        .call(IMAGE, &GetImageRequest { name: name.clone() })
        .await
        .map_err(called(format!("image {name:?}")))?;
    let Descriptor { media_type, digest } = response.image.and_then(|image| image.target).unwrap_or_default();
    Ok(Recorded { name, digest, media_type })
}
