//! What the commands on API tokens do. The token itself goes to standard output, so that it can be piped to where it is
//! kept; all else about it goes to standard error.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use serde_json::json;
use tollgate::api_tokens::{
    ApiTokens, Id, Issued, List, Listed, Order, OwnLimits, Presented, Problem, Verdict,
};
use tollgate::app::on_api_tokens;
use tollgate::cli::{ApiToken, CreateApiToken, KeySource, ListApiTokens, OneApiToken};
use tollgate::clock::{Clock as _, SystemClock, UnixMillis};
use tollgate::config::Spec;
use tollgate::identity::Refused;

use super::load;

/// Does what `command` says.
pub(super) fn execute(command: &ApiToken) -> anyhow::Result<ExitCode> {
    let now = SystemClock.now();
    match command {
        ApiToken::Create(arguments) => create(arguments, now),
        ApiToken::List(arguments) => list(arguments, now),
        ApiToken::Rotate(arguments) => {
            let grace = arguments.grace.unwrap_or(Duration::ZERO);
            on_one(&arguments.one, async |tokens, id| {
                let made = tokens.rotate(id, grace, now).await?;
                let advice = match made.listed.previous_until {
                    Some(until) => format!("The secret before it works until {}.", time(until)),
                    None => "The secret before it does not work any more.".to_owned(),
                };
                Ok(Done::Made(made.token, Box::new(made.listed), advice))
            })
        }
        ApiToken::Disable(one) => on_one(one, async |tokens, id| {
            let listed = tokens.disable(id, true, now).await?;
            Ok(Done::Changed(Box::new(listed), "disabled: refused from the next request on"))
        }),
        ApiToken::Enable(one) => on_one(one, async |tokens, id| {
            let listed = tokens.disable(id, false, now).await?;
            Ok(Done::Changed(Box::new(listed), "enabled"))
        }),
        ApiToken::Delete(one) => on_one(one, async |tokens, id| {
            tokens.delete(id).await?;
            Ok(Done::Deleted(id))
        }),
    }
}

/// What became of one token.
enum Done {
    /// It has a new secret: this is the whole token, and what else there is to say.
    Made(Issued, Box<Listed>, String),
    /// It is this now, in a word.
    Changed(Box<Listed>, &'static str),
    /// It is gone.
    Deleted(Id),
}

fn create(arguments: &CreateApiToken, now: UnixMillis) -> anyhow::Result<ExitCode> {
    let Some(spec) = read(&arguments.config) else { return Ok(ExitCode::FAILURE) };
    if let Some(plan) = &arguments.plan
        && !spec.plans.iter().any(|known| *known.name == **plan)
    {
        let names: Vec<&str> = spec.plans.iter().map(|plan| &*plan.name).collect();
        bail!("no plan is named {plan:?}; there are: {}", names.join(", "));
    }
    let order = Order {
        name: arguments.name.as_str().into(),
        owner: arguments.owner.as_str().into(),
        plan: arguments.plan.as_deref().map(Into::into),
        permissions: arguments.permissions.iter().map(|permission| permission.as_str().into()).collect(),
        multiplier: arguments.multiplier,
        limits: OwnLimits { minute: arguments.minute, hour: arguments.hour, day: arguments.day },
        expires_in: arguments.expires_in,
    };
    let made = on_api_tokens(&spec, async |tokens| tokens.create(&order, now).await)??;
    let advice = match made.listed.expires {
        Some(expires) => format!("It expires at {}.", time(expires)),
        None => "It does not expire.".to_owned(),
    };
    if let Some(doubt) = made.doubt {
        eprintln!("warning: {doubt}");
    }
    show(&Done::Made(made.token, Box::new(made.listed), advice), &spec, arguments.json)?;
    Ok(ExitCode::SUCCESS)
}

fn on_one(
    one: &OneApiToken,
    work: impl AsyncFnOnce(&ApiTokens, Id) -> Result<Done, Problem>,
) -> anyhow::Result<ExitCode> {
    let id = one.id.id()?;
    let Some(spec) = read(&one.config) else { return Ok(ExitCode::FAILURE) };
    let done = on_api_tokens(&spec, async |tokens| work(tokens, id).await)??;
    show(&done, &spec, one.json)?;
    Ok(ExitCode::SUCCESS)
}

/// The configuration; says what probably is not meant.
fn read(path: &Path) -> Option<Spec> {
    let spec = load(path)?.spec;
    if !spec.api_tokens.enabled {
        eprintln!(
            "warning: {}: api_tokens.enabled is false: gateways of this configuration accept no API token",
            path.display()
        );
    }
    Some(spec)
}

fn show(done: &Done, spec: &Spec, json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match done {
        Done::Made(token, listed, _) if json => {
            let mut value = serde_json::to_value(listed)?;
            if let Some(object) = value.as_object_mut() {
                object.insert("token".to_owned(), token.reveal().into());
            }
            writeln!(out, "{value:#}")?;
        }
        Done::Made(token, listed, advice) => {
            writeln!(out, "{}", token.reveal())?;
            let header = spec.api_tokens.header.as_ref().map(|name| format!(", or in the header {name}"));
            eprintln!(
                "API token {} ({}) of {}. Keep it now: it is not shown again, and only a hash of it is stored.\n\
                 Send it as `Authorization: Bearer <token>`{}. {advice}",
                listed.id,
                listed.name,
                listed.owner,
                header.unwrap_or_default()
            );
        }
        Done::Changed(listed, _) if json => writeln!(out, "{:#}", serde_json::to_value(listed)?)?,
        Done::Changed(listed, word) => {
            eprintln!("API token {} ({}) of {} is {word}.", listed.id, listed.name, listed.owner);
        }
        Done::Deleted(id) if json => writeln!(out, "{:#}", json!({ "id": id.as_str(), "deleted": true }))?,
        Done::Deleted(id) => eprintln!("API token {id} is deleted."),
    }
    Ok(())
}

fn list(arguments: &ListApiTokens, now: UnixMillis) -> anyhow::Result<ExitCode> {
    let Some(spec) = read(&arguments.config) else { return Ok(ExitCode::FAILURE) };
    let List { mut tokens, complete } = on_api_tokens(&spec, async |tokens| tokens.list(now).await)??;
    if !complete {
        eprintln!(
            "warning: there are more API tokens than are listed: delete those that are not used any more"
        );
    }
    tokens.retain(|token| arguments.owner.as_ref().is_none_or(|owner| *token.owner == **owner));
    let mut out = std::io::stdout().lock();
    if arguments.json {
        writeln!(out, "{:#}", serde_json::to_value(&tokens)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let heads =
        ["ID", "NAME", "OWNER", "PLAN", "LIMITS", "PERMISSIONS", "CREATED", "EXPIRES", "STATE", "LAST USED"];
    let rows: Vec<[String; 10]> =
        std::iter::once(heads.map(str::to_owned)).chain(tokens.iter().map(|token| row(token, now))).collect();
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|text| text.chars().count()).max();
    let widths: Vec<usize> = (0..heads.len()).map(|column| width(column).unwrap_or(0)).collect();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(text, width)| format!("{text:width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row(token: &Listed, now: UnixMillis) -> [String; 10] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let OwnLimits { minute, hour, day } = token.limits;
    let limits: Vec<String> = [(minute, "minute"), (hour, "hour"), (day, "day")]
        .into_iter()
        .filter_map(|(limit, window)| limit.map(|limit| format!("{limit}/{window}")))
        .collect();
    let expired = token.expires.is_some_and(|expires| now >= UnixMillis::from_secs(expires));
    let state = match (token.disabled, expired) {
        (true, _) => "disabled",
        (false, true) => "expired",
        (false, false) => "active",
    };
    let state = match token.previous_until {
        Some(until) => format!("{state}, the secret before until {}", time(until)),
        None => state.to_owned(),
    };
    [
        token.id.to_string(),
        token.name.to_string(),
        token.owner.to_string(),
        or_dash(token.plan.as_deref().map(str::to_owned)),
        or_dash(Some(limits.join(" ")).filter(|text| !text.is_empty())),
        or_dash(Some(token.permissions.join(",")).filter(|text| !text.is_empty())),
        time(token.created),
        or_dash(token.expires.map(time)),
        state,
        or_dash(token.last_used.map(time)),
    ]
}

/// A moment as people read it, in UTC.
fn time(seconds: u64) -> String {
    // The largest that can be written.
    let at = std::time::UNIX_EPOCH + Duration::from_secs(seconds.min(253_402_300_799));
    humantime::format_rfc3339_seconds(at).to_string()
}

/// Explains why an API token is or is not accepted.
pub(super) fn inspect(token: &str, key: &KeySource) -> anyhow::Result<ExitCode> {
    let Some(presented) = Presented::parse(token) else {
        println!(
            "An API token, and not one: the form is tgk_, 16 letters and digits, _, 43 letters and digits."
        );
        return Ok(ExitCode::FAILURE);
    };
    let KeySource { config: Some(path), .. } = key else {
        println!(
            "An API token with the id {}. It is no JWT: name a configuration (--config) to ask its Redis.",
            presented.id
        );
        return Ok(ExitCode::FAILURE);
    };
    let Some(spec) = read(path) else { return Ok(ExitCode::FAILURE) };
    let now = SystemClock.now();
    let (verdict, listed) = on_api_tokens(&spec, async |tokens| {
        tokens.look_up(&presented, now, || SystemClock.now()).await?;
        let verdict = tokens.judge(&presented, now);
        let listed = tokens.find(presented.id, now).await?;
        Ok::<_, Problem>((verdict, listed))
    })??;
    let verdict = match verdict {
        Verdict::Accepted(_) => Ok(()),
        Verdict::Refused(refused) => Err(refused),
        Verdict::Unknown(_) => bail!("Redis says nothing about this token"),
    };
    let (word, code) = match verdict {
        Ok(()) => ("accepted", ExitCode::SUCCESS),
        Err(Refused::BadSignature) => ("not accepted: no token has this id and secret", ExitCode::FAILURE),
        Err(Refused::Revoked) => ("not accepted: it is disabled", ExitCode::FAILURE),
        Err(Refused::Expired) => ("not accepted: it has expired", ExitCode::FAILURE),
        Err(_) => ("not accepted", ExitCode::FAILURE),
    };
    println!("An API token with the id {}: {word}.", presented.id);
    // Nothing about it to whoever has only the id.
    if let Some(listed) = listed.filter(|_| !matches!(verdict, Err(Refused::BadSignature))) {
        println!("{:#}", serde_json::to_value(&listed)?);
    }
    Ok(code)
}
