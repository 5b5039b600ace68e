//! A route: its path, its method, its handler, and what is said of it, in one place. The router serves it and the OpenAPI document
//! ([`super::openapi`]) describes it, so neither can know a route that the other does not. Each resource's file lists its own.

use axum::handler::Handler;
use axum::http::StatusCode;
use axum::routing::{MethodFilter, MethodRouter, on};
use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::Api;

/// Makes the schema of a type.
pub type Shape = fn(&mut SchemaGenerator) -> Schema;

/// One path and one method.
pub struct Route {
    /// As axum and OpenAPI write it: `/v1/sandboxes/{id}`.
    pub path: &'static str,
    /// In lower case.
    pub method: &'static str,
    /// Answers it.
    pub handler: MethodRouter<Api>,
    /// What it is called; no two are called alike.
    pub id: &'static str,
    /// What it does, in a sentence.
    pub summary: &'static str,
    /// Who may.
    pub access: Access,
    /// What stands in the path and behind `?`.
    pub parameters: Vec<Parameter>,
    /// The members of these stand behind `?`, too.
    pub query: Option<Shape>,
    /// What is sent with it.
    pub body: Option<Content>,
    /// What comes of it when it goes well.
    pub answers: Vec<Answer>,
    /// What else may come of it: status and code.
    pub problems: Vec<(u16, &'static str)>,
}

/// Who may. Over the socket it is the operator, who may all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    Anyone,
    /// An agent by its token, too.
    Agent,
    /// The operator alone.
    Operator,
}

/// Something in the path or behind `?`.
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// What it is for.
    pub what: &'static str,
    /// Its schema.
    pub shape: Shape,
}

/// What is sent, either way.
pub struct Content {
    /// Its media type.
    pub media: &'static str,
    /// Its schema; of bytes none.
    pub shape: Option<Shape>,
}

/// An answer that is no problem.
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// What it means.
    pub what: &'static str,
    /// What comes with it.
    pub content: Option<Content>,
}

const JSON: &str = "application/json";

fn shape<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// The type's own schema, not a reference to it: its members are looked at.
fn members<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    T::json_schema(generator)
}

macro_rules! methods {
    ($($name:ident: $filter:ident,)+) => { $(
        /// A route of this method.
        pub fn $name<H: Handler<T, Api>, T: 'static>(path: &'static str, handler: H) -> Route {
            Route::new(stringify!($name), path, on(MethodFilter::$filter, handler))
        }
    )+ };
}

methods! {
    get: GET,
    post: POST,
    put: PUT,
    patch: PATCH,
    delete: DELETE,
}

impl Route {
    fn new(method: &'static str, path: &'static str, handler: MethodRouter<Api>) -> Self {
        Self {
            path,
            method,
            handler,
            id: "",
            summary: "",
            access: Access::Operator,
            parameters: Vec::new(),
            query: None,
            body: None,
            answers: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// How it is called, and what it does.
    pub fn named(self, id: &'static str, summary: &'static str) -> Self {
        Self { id, summary, ..self }
    }

    /// Who may; the operator alone, where nothing is said.
    pub fn may(self, access: Access) -> Self {
        Self { access, ..self }
    }

    /// Something in the path, or behind `?`.
    pub fn parameter<T: JsonSchema>(mut self, name: &'static str, what: &'static str) -> Self {
        self.parameters.push(Parameter { name, what, shape: shape::<T> });
        self
    }

    /// What may stand behind `?`.
    pub fn query<T: JsonSchema>(self) -> Self {
        Self { query: Some(members::<T>), ..self }
    }

    /// A JSON body.
    pub fn body<T: JsonSchema>(self) -> Self {
        Self { body: Some(Content { media: JSON, shape: Some(shape::<T>) }), ..self }
    }

    /// A body that is bytes.
    pub fn bytes(self, media: &'static str) -> Self {
        Self { body: Some(Content { media, shape: None }), ..self }
    }

    /// A JSON answer.
    pub fn answers<T: JsonSchema>(self, status: StatusCode, what: &'static str) -> Self {
        self.answers_as::<T>(JSON, status, what)
    }

    /// JSON with a media type of its own.
    pub fn answers_as<T: JsonSchema>(mut self, media: &'static str, status: StatusCode, what: &'static str) -> Self {
        self.answers.push(Answer { status, what, content: Some(Content { media, shape: Some(shape::<T>) }) });
        self
    }

    /// An answer that is bytes.
    pub fn answers_bytes(mut self, media: &'static str, what: &'static str) -> Self {
        self.answers.push(Answer { status: StatusCode::OK, what, content: Some(Content { media, shape: None }) });
        self
    }

    /// An answer without a body.
    pub fn answers_nothing(mut self, status: StatusCode, what: &'static str) -> Self {
        self.answers.push(Answer { status, what, content: None });
        self
    }

    /// What else may come of it.
    pub fn problems(mut self, problems: &[(u16, &'static str)]) -> Self {
        self.problems.extend_from_slice(problems);
        self
    }
}
