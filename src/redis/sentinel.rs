//! Asks sentinels who the master is, and the master whether it agrees. It decides nothing else.

use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Client, ConnectionInfo, RedisResult, Value, cmd};

use super::UnusableUrl;
use super::settings::Address;

/// What one sentinel, or one candidate, may take to answer.
const ANSWER_TIME: Duration = Duration::from_millis(300);

/// The sentinels of one master.
pub(super) struct Sentinels {
    members: Vec<Member>,
    service: Box<str>,
    /// How a master is spoken to.
    like: ConnectionInfo,
    config: AsyncConnectionConfig,
}

struct Member {
    client: Client,
    connection: Option<MultiplexedConnection>,
}

impl Sentinels {
    pub(super) fn new(
        sentinels: &[ConnectionInfo],
        service: &str,
        like: &ConnectionInfo,
        config: &AsyncConnectionConfig,
    ) -> Result<Self, UnusableUrl> {
        let open = |info: &ConnectionInfo| {
            let client = Client::open(info.clone()).map_err(|_| UnusableUrl)?;
            Ok(Member { client, connection: None })
        };
        Ok(Self {
            members: sentinels.iter().map(open).collect::<Result<_, _>>()?,
            service: service.into(),
            like: like.clone(),
            config: config.clone(),
        })
    }

    /// The master that most sentinels name and that says itself that it is one.
    pub(super) async fn find(&mut self) -> Option<(Address, Client)> {
        for address in self.candidates().await {
            let Ok(client) = Client::open(address.reached_like(&self.like)) else { continue };
            let asked = tokio::time::timeout(ANSWER_TIME, is_master(&client, &self.config)).await;
            if matches!(asked, Ok(Ok(true))) {
                return Some((address, client));
            }
        }
        None
    }

    /// Whether another than `present` is the master now.
    pub(super) async fn have_moved_on_from(&mut self, present: &Address) -> bool {
        if self.candidates().await.first().is_none_or(|first| first == present) {
            return false;
        }
        self.find().await.is_some_and(|(address, _)| address != *present)
    }

    /// What the sentinels say, most votes first: one that was cut off from the others tells an old story.
    async fn candidates(&mut self) -> Vec<Address> {
        let Self { members, service, config, .. } = self;
        let asked = members.iter_mut().map(|member| member.ask(service, config));
        let mut votes: Vec<(Address, usize)> = Vec::new();
        for address in futures::future::join_all(asked).await.into_iter().flatten() {
            match votes.iter_mut().find(|(known, _)| *known == address) {
                Some((_, count)) => *count += 1,
                None => votes.push((address, 1)),
            }
        }
        votes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        votes.into_iter().map(|(address, _)| address).collect()
    }
}

impl Member {
    async fn ask(&mut self, service: &str, config: &AsyncConnectionConfig) -> Option<Address> {
        let kept = self.connection.take();
        let asked = tokio::time::timeout(ANSWER_TIME, async {
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.client.get_multiplexed_async_connection_with_config(config).await?,
            };
            let mut question = cmd("SENTINEL");
            question.arg("GET-MASTER-ADDR-BY-NAME").arg(service);
            let named: Option<(String, u16)> = question.query_async(&mut connection).await?;
            RedisResult::Ok((connection, named))
        });
        let (connection, named) = asked.await.ok()?.ok()?;
        // Kept only after an answer: anything else may have broken it.
        self.connection = Some(connection);
        named.map(|(host, port)| Address { host: host.into(), port })
    }
}

async fn is_master(client: &Client, config: &AsyncConnectionConfig) -> RedisResult<bool> {
    let mut connection = client.get_multiplexed_async_connection_with_config(config).await?;
    let role: Vec<Value> = cmd("ROLE").query_async(&mut connection).await?;
    Ok(matches!(role.first(), Some(Value::BulkString(role)) if role == b"master"))
}
