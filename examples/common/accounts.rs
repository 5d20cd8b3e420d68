//! Who may log in: mail addresses and passwords, in memory and bounded.

use std::collections::HashMap;

use http::StatusCode;
use parking_lot::Mutex;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::reply::Reply;

const MAX_ACCOUNTS: usize = 10_000;
const MAX_EMAIL: usize = 254;
const PASSWORD: std::ops::RangeInclusive<usize> = 8..=128;

/// What a login sends.
#[derive(Deserialize)]
pub struct Credentials {
    /// The mail address; case makes no difference.
    pub email: String,
    /// The password.
    pub password: String,
}

/// All accounts, by mail address.
#[derive(Default)]
pub struct Accounts(Mutex<HashMap<String, Account>>);

struct Account {
    id: String,
    salt: u128,
    digest: [u8; 32],
}

impl Accounts {
    /// A new account; returns its id.
    ///
    /// # Errors
    /// 422 for what is no address or no password, 409 for an address that is taken, 507 when there are too many.
    pub fn register(&self, credentials: &Credentials) -> Result<String, Reply> {
        let email = normal(&credentials.email);
        if email.len() > MAX_EMAIL || email.split('@').filter(|part| !part.is_empty()).count() != 2 {
            return Err(Reply::unacceptable("email is no mail address"));
        }
        if !PASSWORD.contains(&credentials.password.len()) {
            return Err(Reply::unacceptable("password must have 8 to 128 characters"));
        }
        let mut accounts = self.0.lock();
        if accounts.contains_key(&email) {
            return Err(Reply::refusal(StatusCode::CONFLICT, "Email already registered"));
        }
        if accounts.len() >= MAX_ACCOUNTS {
            return Err(Reply::full());
        }
        let (id, salt) = (new_id(), fastrand::u128(..));
        let digest = digest(salt, &credentials.password);
        accounts.insert(email, Account { id: id.clone(), salt, digest });
        Ok(id)
    }

    /// The id of the account that these open.
    ///
    /// # Errors
    /// 401 when they open none.
    pub fn login(&self, credentials: &Credentials) -> Result<String, Reply> {
        let accounts = self.0.lock();
        let account = accounts.get(&normal(&credentials.email));
        let account = account.filter(|account| account.digest == digest(account.salt, &credentials.password));
        account
            .map(|account| account.id.clone())
            .ok_or_else(|| Reply::refusal(StatusCode::UNAUTHORIZED, "Invalid email or password"))
    }

    /// Removes the account with this id.
    pub fn remove(&self, id: &str) {
        self.0.lock().retain(|_, account| account.id != id);
    }
}

/// An id such as document databases give: 24 hexadecimal digits.
pub fn new_id() -> String {
    format!("{:024x}", fastrand::u128(..) >> 32)
}

fn normal(email: &str) -> String {
    email.trim().to_lowercase()
}

/// Enough for a sample; an application uses a function that is slow on purpose, such as Argon2.
fn digest(salt: u128, password: &str) -> [u8; 32] {
    Sha256::new().chain_update(salt.to_be_bytes()).chain_update(password).finalize().into()
}
