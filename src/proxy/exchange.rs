//! One request on its way through the phases, and what has to be done for it in several of them.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode};
use pingora::Result;
use pingora::proxy::Session;

use super::downstream;
use super::warm::Warming;
use crate::cache::Transaction;
use crate::cache::request::write_invalidates;
use crate::header_names::X_REQUEST_ID;
use crate::pipeline::give_back::settle_counts;
use crate::pipeline::{Admitted, CacheUse, Context, Gateway, Refusal, Reply, find_param};
use crate::route::Logout;
use crate::sessions::login::BodyCopy;
use crate::upstream::Upstream;

/// A request with the configuration it is judged by.
pub struct Exchange {
    pub(super) gateway: Arc<Gateway>,
    pub(super) context: Context,
    /// The beginning of the body, where it was read and pingora does not repeat it.
    pub(super) carried: Option<Bytes>,
    /// A copy of the body of the answer to a login, as far as it has come.
    pub(super) login_body: Option<Box<BodyCopy>>,
    /// The request is one of the gateway's own, which keeps a response warm.
    pub(super) warming: Option<Box<Warming>>,
}

impl Exchange {
    pub(super) fn admitted(&self) -> Option<&Admitted> {
        self.context.admitted()
    }

    pub(super) fn transaction(&mut self) -> Option<&mut Transaction> {
        match &mut self.context.admitted_mut()?.cache {
            CacheUse::Used(transaction) => Some(transaction),
            CacheUse::NotConfigured | CacheUse::Bypassed(_) => None,
        }
    }

    pub(super) fn transaction_read(&self) -> Option<&Transaction> {
        match &self.admitted()?.cache {
            CacheUse::Used(transaction) => Some(transaction),
            CacheUse::NotConfigured | CacheUse::Bypassed(_) => None,
        }
    }

    pub(super) fn upstream(&self) -> Option<&Arc<Upstream>> {
        self.admitted()?.route.upstream.as_ref()
    }

    /// Answers with a reply of the gateway's own.
    pub(super) async fn answer(&mut self, session: &mut Session, reply: &Reply) -> Result<()> {
        let mut stamp = std::mem::take(&mut self.context.quota);
        stamp.push((X_REQUEST_ID.clone(), self.context.request_id.clone()));
        downstream::write(session, reply, &stamp).await
    }

    pub(super) async fn refuse(&mut self, session: &mut Session, refusal: Refusal) -> Result<()> {
        let reply = refusal.reply();
        self.context.refusal = Some(refusal);
        self.answer(session, &reply).await
    }

    /// The tags that a write on this route changes: what the route declares, and the very target.
    pub(super) fn changed_tags(&self) -> Vec<Box<str>> {
        let Some(admitted) = self.admitted() else { return Vec::new() };
        let user = admitted.identity.as_ref().map(|identity| &*identity.account);
        let param = |name: &str| find_param(&admitted.params, name);
        let declared = admitted.route.invalidates.iter().map(|template| template.render(user, param));
        declared.chain(admitted.overwrites.iter().cloned()).collect()
    }

    /// What must have happened before the client may see an answer to its request. `status` is the upstream's, and
    /// `judged` the one that counts of failures go by; `None` where nobody knows. `named` are tags of what the answer
    /// says to have changed.
    pub(super) async fn settle(
        &mut self,
        method: &Method,
        status: Option<StatusCode>,
        judged: Option<StatusCode>,
        named: Vec<Box<str>>,
    ) {
        let provisional = std::mem::take(&mut self.context.provisional);
        let counted = settle_counts(&self.gateway, provisional, judged.map(|status| status.as_u16()));
        let shared = &self.gateway.shared;
        let mut tags = if write_invalidates(method, status) { self.changed_tags() } else { Vec::new() };
        for tag in named {
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        let invalidated = async {
            if !tags.is_empty() {
                shared.invalidate(tags).await;
            }
        };
        let logged_out = async {
            if let Some(admitted) = self.admitted()
                && admitted.route.logout == Some(Logout::Forward)
                && status.is_some_and(|status| status.is_success())
                && let Some(identity) = &admitted.identity
            {
                self.gateway.log_out(&admitted.route, identity).await;
            }
        };
        // Side by side: the client waits for the store once.
        tokio::join!(invalidated, logged_out, counted);
    }
}
