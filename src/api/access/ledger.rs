//! What clients without a key have used: of so many addresses, those seen last.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;

use super::peers::ClientAddress;
use super::rates::Account;
use super::time::Time;

/// Addresses that are remembered. Whoever has more of them at hand begins anew with each
/// in any case.
const MAX_ADDRESSES: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();

/// The accounts of addresses.
#[derive(Debug)]
pub(super) struct Ledger {
    accounts: Mutex<LruCache<ClientAddress, Arc<Account>>>,
    time: Time,
}

impl Ledger {
    pub(super) fn new(time: Time) -> Self {
        Self { accounts: Mutex::new(LruCache::new(MAX_ADDRESSES)), time }
    }

    /// The account of `address`; beyond the most, that of the address that was not seen for
    /// longest is forgotten.
    pub(super) fn account(&self, address: ClientAddress) -> Arc<Account> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let account = accounts.get_or_insert(address, || Account::new(self.time.clone()));
        Arc::clone(account)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::num::NonZeroU32;

    use axum::http::HeaderMap;

    use super::super::peers::Proxies;
    use super::*;

    fn address(number: u32) -> ClientAddress {
        Proxies::None.client(&HeaderMap::new(), Ipv4Addr::from_bits(number).into())
    }

    #[test]
    fn addresses_have_accounts_of_their_own_and_are_forgotten_beyond_the_most() {
        let ledger = Ledger::new(Time::fake(0).0);
        let spend = |number| ledger.account(address(number)).take_request(NonZeroU32::MIN).is_ok();
        let most = u32::try_from(MAX_ADDRESSES.get()).unwrap();

        assert!(spend(0) && !spend(0) && spend(1));
        for number in 2..most {
            assert!(spend(number));
        }
        assert!(!spend(0), "still known, and now the one seen last");
        assert!(spend(most) && spend(most + 1));
        assert!(!spend(0) && spend(1), "the one not seen for longest was forgotten");
        assert_eq!(ledger.accounts.lock().unwrap().len(), MAX_ADDRESSES.get());
    }
}
