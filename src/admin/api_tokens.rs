//! The calls of `/api/v1/api-tokens`: strict bodies in, what became of the token out. A secret is in the answer to the
//! call that made it and nowhere else.

use std::time::Duration;

use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::api::{Span, failed, named, parse};
use super::operations::OperationError;
use super::reply::Reply;
use crate::api_tokens::{Hold, Id, Issued, List, Listed, Order, OwnLimits};

/// Longest text in a body, in bytes; what a token allows is checked where it is made.
const MAX_TEXT: usize = 1_024;

/// What is done with API tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Create,
    List,
    Rotate,
    Disable,
    Enable,
    Delete,
}

impl Call {
    /// The call at this path below `/api/v1/api-tokens/`.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "create" => Self::Create,
            "list" => Self::List,
            "rotate" => Self::Rotate,
            "disable" => Self::Disable,
            "enable" => Self::Enable,
            "delete" => Self::Delete,
            _ => return None,
        })
    }
}

/// An operation on API tokens, as an operator asks for it.
#[derive(Clone, Debug, PartialEq)]
pub enum ApiTokenCall {
    /// Make one.
    Create(Box<Order>),
    /// Show all of them, or those of one owner.
    List(Option<Box<str>>),
    /// Give one another secret, and let the old one work for so long.
    Rotate(Id, Duration),
    /// Refuse one for now.
    Disable(Id),
    /// Accept it again.
    Enable(Id),
    /// End one for good.
    Delete(Id),
}

/// What became of it.
#[derive(Debug)]
pub enum ApiTokenDone {
    /// This is the token now, and, where it was made, the whole of it.
    One(Box<Listed>, Option<Issued>),
    /// These are the tokens.
    All(List),
    /// The token is gone.
    Deleted(Id),
    /// Nobody could be told: the token is refused by this instance, and the others hear of it later.
    Held(Id, Hold),
}

/// An operation that was done.
#[derive(Debug)]
pub struct ApiTokenAnswer {
    /// What became of it.
    pub done: ApiTokenDone,
    /// Whether all instances have the same tokens; otherwise they end with the process.
    pub shared: bool,
    /// What may have been overlooked about the token that was made.
    pub doubt: Option<&'static str>,
}

/// Reads the body of `call`.
pub(super) fn read(call: Call, body: &[u8]) -> Result<ApiTokenCall, &'static str> {
    Ok(match call {
        Call::Create => ApiTokenCall::Create(Box::new(order(body)?)),
        Call::List => {
            let body = if body.is_empty() { b"{}" } else { body };
            let ListBody { owner } = parse(body, "send a JSON object, empty or with owner")?;
            ApiTokenCall::List(owner.map(|owner| named(owner, MAX_TEXT)).transpose()?)
        }
        Call::Rotate => {
            const SHAPE: &str = "send a JSON object with id, and optionally grace";
            let RotateBody { id, grace } = parse(body, SHAPE)?;
            ApiTokenCall::Rotate(self::id(&id)?, grace.map_or(Ok(Duration::ZERO), Span::duration)?)
        }
        Call::Disable => ApiTokenCall::Disable(only_id(body)?),
        Call::Enable => ApiTokenCall::Enable(only_id(body)?),
        Call::Delete => ApiTokenCall::Delete(only_id(body)?),
    })
}

/// The answer to an operation.
pub(super) fn reply(done: Result<ApiTokenAnswer, OperationError>) -> Reply {
    let ApiTokenAnswer { done, shared, doubt } = match done {
        Ok(answer) => answer,
        Err(error) => return failed(error),
    };
    let note = (!shared).then_some("kept in the memory of this instance only: it ends with the process");
    let note = doubt.or(note);
    match &done {
        ApiTokenDone::One(listed, token) => {
            let token = token.as_ref().map(Issued::reveal);
            Reply::json(StatusCode::OK, &One { token, listed, shared, note })
        }
        ApiTokenDone::All(List { tokens, complete }) => {
            let cut = "there are more tokens than are listed: delete those that are not used any more";
            let note = if *complete { note } else { Some(cut) };
            Reply::json(StatusCode::OK, &All { tokens, complete: *complete, shared, note })
        }
        ApiTokenDone::Deleted(id) => {
            Reply::json(StatusCode::OK, &Gone { id: id.as_str(), deleted: true, shared })
        }
        ApiTokenDone::Held(id, hold) => {
            let note = "this instance refuses it from now on, if there is such a token; the shared store is not \
                        reachable, and the others hear of it when it is";
            let (disabled, deleted) = match hold {
                Hold::Disabled => (Some(true), None),
                Hold::Deleted => (None, Some(true)),
            };
            Reply::json(StatusCode::OK, &Kept { id: id.as_str(), disabled, deleted, shared, note })
        }
    }
}

#[derive(Serialize)]
struct One<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(flatten)]
    listed: &'a Listed,
    shared: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
}

#[derive(Serialize)]
struct All<'a> {
    tokens: &'a [Listed],
    complete: bool,
    shared: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
}

#[derive(Serialize)]
struct Gone<'a> {
    id: &'a str,
    deleted: bool,
    shared: bool,
}

#[derive(Serialize)]
struct Kept<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    disabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted: Option<bool>,
    shared: bool,
    note: &'static str,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    name: Box<str>,
    owner: Box<str>,
    plan: Option<Box<str>>,
    #[serde(default)]
    permissions: Vec<Box<str>>,
    multiplier: Option<f64>,
    #[serde(default)]
    limits: OwnLimits,
    expires_in: Option<Span>,
}

fn order(body: &[u8]) -> Result<Order, &'static str> {
    const SHAPE: &str = "send a JSON object with name and owner, and optionally plan, permissions (a list), multiplier, \
                         limits (an object with minute, hour, day) and expires_in";
    let body: CreateBody = parse(body, SHAPE)?;
    Ok(Order {
        name: named(body.name, MAX_TEXT)?,
        owner: named(body.owner, MAX_TEXT)?,
        plan: body.plan.map(|plan| named(plan, MAX_TEXT)).transpose()?,
        permissions: body.permissions,
        multiplier: body.multiplier,
        limits: body.limits,
        expires_in: body.expires_in.map(Span::duration).transpose()?,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListBody {
    owner: Option<Box<str>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RotateBody {
    id: Box<str>,
    grace: Option<Span>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IdBody {
    id: Box<str>,
}

fn only_id(body: &[u8]) -> Result<Id, &'static str> {
    let IdBody { id } = parse(body, "send a JSON object with id")?;
    self::id(&id)
}

pub(super) fn id(text: &str) -> Result<Id, &'static str> {
    Id::parse(text).ok_or("an id is the 16 letters and digits after tgk_; the secret does not belong here")
}
