//! The closed sets a metric label may take. Nothing here is read from a request as text, so the number of series
//! is known at start-up.

/// A closed set of label values; the owner of a *why* implements it beside its own enum.
pub trait Label: Copy + 'static {
    /// Every value, in the order of [`Label::index`].
    const ALL: &'static [Self];

    /// The value as it appears in Prometheus: lower snake case.
    fn as_str(self) -> &'static str;

    /// The position in [`Label::ALL`], usually `self as usize`.
    fn index(self) -> usize;
}

/// Declares a fieldless enum together with its [`Label`] implementation.
#[macro_export]
macro_rules! label {
    ($(#[$meta:meta])* $vis:vis enum $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        $vis enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// The value as metrics and logs spell it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl $crate::metrics::Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)+];

            fn as_str(self) -> &'static str {
                Self::as_str(self)
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label! {
    /// What carries a question to the shared store.
    pub enum ExchangePath {
        /// The script, which judges and counts in one step.
        Script = "script",
        /// Plain increments of counters far from their limits.
        Native = "native",
        /// A read, where nothing is counted.
        Read = "read",
    }
}

label! {
    /// What became of a count to be taken back.
    pub enum RefundResult {
        /// It was taken back.
        Done = "done",
        /// It may still be counted.
        Lost = "lost",
    }
}

label! {
    /// What came of reading the keys that an issuer publishes.
    pub enum JwksFetch {
        /// Keys that differ from those before.
        Changed = "changed",
        /// The same keys as before.
        Unchanged = "unchanged",
        /// No answer, or none in time.
        Unreachable = "unreachable",
        /// An answer that is no set of acceptable size.
        Refused = "refused",
        /// A set without usable keys, or none at all.
        Invalid = "invalid",
    }
}

label! {
    /// What a method does to the resource (RFC 9110 section 9.2): three values instead of whatever a client sends.
    pub enum MethodClass {
        /// GET and HEAD.
        Read = "read",
        /// POST, PUT, PATCH and DELETE.
        Write = "write",
        /// Everything else.
        Other = "other",
    }
}

impl MethodClass {
    /// The class of `method`.
    pub fn of(method: &http::Method) -> Self {
        match method.as_str() {
            "GET" | "HEAD" => Self::Read,
            "POST" | "PUT" | "PATCH" | "DELETE" => Self::Write,
            _ => Self::Other,
        }
    }
}

label! {
    /// The first digit of the status that left the gateway.
    pub enum StatusClass {
        /// The client was gone before an answer began.
        None = "none",
        /// 1xx, an upgraded connection for instance.
        Informational = "1xx",
        /// 2xx.
        Success = "2xx",
        /// 3xx.
        Redirect = "3xx",
        /// 4xx.
        ClientError = "4xx",
        /// 5xx.
        ServerError = "5xx",
    }
}

impl StatusClass {
    /// The class of `status`; zero and anything outside 100..=599 read as [`StatusClass::None`].
    pub const fn of(status: u16) -> Self {
        match status {
            100..=199 => Self::Informational,
            200..=299 => Self::Success,
            300..=399 => Self::Redirect,
            400..=499 => Self::ClientError,
            500..=599 => Self::ServerError,
            _ => Self::None,
        }
    }
}

label! {
    /// How talking to an upstream failed.
    pub enum UpstreamFailure {
        /// No connection could be made.
        Connect = "connect",
        /// No connection in time.
        ConnectTimeout = "connect_timeout",
        /// The answer did not come in time.
        Timeout = "timeout",
        /// The connection broke half-way.
        Reset = "reset",
        /// The answer was no HTTP.
        Protocol = "protocol",
        /// No member may be asked.
        NoMember = "no_member",
        /// Anything else.
        Other = "other",
    }
}

label! {
    /// What a policy said about one request.
    pub enum LimitOutcome {
        /// Within the limit.
        Admitted = "admitted",
        /// Over the limit, answered with 429.
        Refused = "refused",
        /// Over the limit of a policy that only watches.
        Shadow = "shadow_refused",
        /// Let through because the store is away and the policy says so.
        AllowedBlind = "allowed_blind",
        /// Refused because the store is away and the policy says so.
        DeniedBlind = "denied_blind",
    }
}

label! {
    /// Where the counter that decided was read.
    pub enum LimitSource {
        /// The shared store.
        Redis = "redis",
        /// This process alone.
        Memory = "memory",
        /// A refusal remembered from an earlier answer: the store was not asked.
        Known = "known",
    }
}

label! {
    /// What the response cache did for one request.
    pub enum CacheOutcome {
        /// Served from the cache.
        Hit = "hit",
        /// Fetched and perhaps stored.
        Miss = "miss",
        /// Served past its freshness.
        Stale = "stale",
        /// Confirmed by the upstream with 304.
        Revalidated = "revalidated",
        /// Not looked up, or not allowed to be stored.
        Bypass = "bypass",
        /// Waited for another request that fetched the same.
        Coalesced = "coalesced",
    }
}

label! {
    /// Where the response cache found a response.
    pub enum CacheTier {
        /// The memory of this instance.
        Memory = "memory",
        /// The tier that all instances share.
        Redis = "redis",
    }
}

label! {
    /// What came of asking Redis for a cached response, or of giving it one.
    pub enum RemoteOutcome {
        /// It had a usable entry.
        Hit = "hit",
        /// It had none.
        Miss = "miss",
        /// It did not answer in time.
        Timeout = "timeout",
        /// What it had is damaged, forged or misfiled.
        Rejected = "rejected",
        /// An entry was written.
        Written = "written",
        /// It did not take an entry.
        Failed = "failed",
        /// An entry was not written, because too many were under way.
        Dropped = "dropped",
        /// An entry was not written, because Redis is nearly full, or refused one a moment ago.
        NoRoom = "no_room",
    }
}

label! {
    /// What came of looking after a response that is kept warm.
    pub enum WarmOutcome {
        /// It was fresh for long enough, here or in the shared tier.
        Fresh = "fresh",
        /// It was fetched, or confirmed by the upstream.
        Fetched = "fetched",
        /// The upstream's answer is not one that can be kept.
        NotKept = "not_kept",
        /// There was no answer, or an error.
        Failed = "failed",
    }
}

label! {
    /// How a store call failed.
    pub enum StoreFailure {
        /// No connection could be made.
        Connect = "connect",
        /// No answer within the deadline.
        Timeout = "timeout",
        /// Credentials or permissions refused.
        Auth = "auth",
        /// The store answered with an error.
        Server = "server",
        /// The answer made no sense.
        Protocol = "protocol",
        /// The breaker was open: nothing was sent.
        Breaker = "breaker",
    }
}

label! {
    /// The two states of the shared store as this process sees it.
    pub enum StoreState {
        /// Shared counting.
        Healthy = "healthy",
        /// Counting from memory.
        Degraded = "degraded",
    }
}

label! {
    /// What was revoked.
    pub enum RevocationKind {
        /// One token, by its `jti` or by the SHA-256 of its text.
        Token = "token",
        /// All tokens of a subject issued until now.
        Subject = "subject",
    }
}

label! {
    /// What happened to a session.
    pub enum SessionEvent {
        /// It was opened by a login, or the login of the same token was repeated.
        Opened = "opened",
        /// It was ended by a logout or by an operator.
        Ended = "ended",
        /// It was ended because its user opened too many others.
        Evicted = "evicted",
        /// A request with a valid token had none.
        Refused = "refused",
        /// A login opened none.
        NotOpened = "not_opened",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn indexes_match<L: Label>() {
        for (position, label) in L::ALL.iter().enumerate() {
            assert_eq!(label.index(), position);
            assert!(
                label.as_str().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            );
        }
    }

    #[test]
    fn every_label_stands_at_its_index_and_is_snake_case() {
        indexes_match::<MethodClass>();
        indexes_match::<StatusClass>();
        indexes_match::<UpstreamFailure>();
        indexes_match::<LimitOutcome>();
        indexes_match::<LimitSource>();
        indexes_match::<CacheOutcome>();
        indexes_match::<CacheTier>();
        indexes_match::<RemoteOutcome>();
        indexes_match::<WarmOutcome>();
        indexes_match::<StoreFailure>();
        indexes_match::<StoreState>();
        indexes_match::<RevocationKind>();
        indexes_match::<SessionEvent>();
    }

    #[test]
    fn an_unknown_method_and_status_fall_into_the_catch_all() {
        let odd = http::Method::from_bytes(b"BREW").unwrap();
        assert_eq!(MethodClass::of(&odd), MethodClass::Other);
        assert_eq!(MethodClass::of(&http::Method::HEAD), MethodClass::Read);
        assert_eq!(MethodClass::of(&http::Method::PATCH), MethodClass::Write);
        assert_eq!(StatusClass::of(0), StatusClass::None);
        assert_eq!(StatusClass::of(999), StatusClass::None);
        assert_eq!(StatusClass::of(429), StatusClass::ClientError);
    }
}
