//! What a request that was let in may do.

use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::Request;

use super::peers::ClientAddress;
use super::rates::{Account, Booked, Limits, PicturesSpent};
use super::{ApiError, Key};
use crate::jobs::Owner;
use crate::requests::{Models, RequestContext};
use crate::service::Client;
use crate::webhooks::WebhookUrl;

/// What a request may do, by its key or its address. In the request's extensions.
#[derive(Debug)]
pub(crate) struct Permit {
    key: Option<Arc<Key>>,
    owner: Owner,
    /// The models that it may use, if not all.
    models: Option<Vec<String>>,
    account: Arc<Account>,
    limits: Limits,
    /// The pictures that it has asked for.
    booked: Mutex<Option<Booked>>,
}

impl Permit {
    pub(super) fn of_key(key: &Arc<Key>) -> Self {
        let (owner, account, limits) = (key.job_owner(), Arc::clone(&key.account), key.limits);
        let (key, models) = (Some(Arc::clone(key)), key.models.clone());
        Self { key, owner, models, account, limits, booked: Mutex::default() }
    }

    pub(super) fn of_address(
        address: ClientAddress,
        account: Arc<Account>,
        limits: Limits,
    ) -> Self {
        Self::of_unknown(address.job_owner(), account, limits)
    }

    pub(super) fn of_unknown(owner: Owner, account: Arc<Account>, limits: Limits) -> Self {
        Self { key: None, owner, models: None, account, limits, booked: Mutex::default() }
    }

    /// What a line of a batch may do: its jobs are `owner`'s, its pictures count as this one's.
    pub(crate) fn of_line(&self, owner: Owner, models: Option<Vec<String>>) -> Self {
        let (account, limits) = (Arc::clone(&self.account), self.limits);
        Self { key: None, owner, models, account, limits, booked: Mutex::default() }
    }

    /// One more for whoever has this one, without a key.
    pub(super) fn of_same_address(&self, limits: Limits) -> Self {
        Self::of_unknown(self.owner.clone(), Arc::clone(&self.account), limits)
    }

    pub(super) fn key(&self) -> Option<&Arc<Key>> {
        self.key.as_ref()
    }

    /// That of `request`.
    ///
    /// # Errors
    /// [`ApiError::Internal`] if it was never admitted: a route without its middleware.
    pub(crate) fn of(request: &Request) -> Result<Arc<Self>, ApiError> {
        let permit = request.extensions().get::<Arc<Self>>().map(Arc::clone);
        permit.ok_or_else(|| ApiError::Internal("a request was not admitted".to_owned()))
    }

    /// Who asks.
    pub(crate) fn client(&self) -> Client {
        client_of(&self.owner)
    }

    /// Whose jobs are this one's.
    pub(crate) fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The models that it may use, if not all.
    pub(crate) fn model_names(&self) -> Option<Vec<String>> {
        self.models.clone()
    }

    /// Who is told of its jobs by its key.
    pub(crate) fn webhook(&self) -> Option<&WebhookUrl> {
        self.key.as_ref()?.webhook.as_ref()
    }

    /// What logs call its key, if that has a name.
    pub(super) fn key_name(&self) -> Option<&str> {
        Some(self.key.as_ref()?.name()?.as_str())
    }

    pub(super) fn account(&self) -> &Arc<Account> {
        &self.account
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Those of `models` that it may use.
    pub(crate) fn models(&self, models: &Arc<Models>) -> Arc<Models> {
        match &self.models {
            Some(names) => Arc::new(models.restricted_to(names)),
            None => Arc::clone(models),
        }
    }

    /// What its fields are read against.
    ///
    /// # Errors
    /// If it may use no model at all, or no pictures are left for today.
    pub(crate) fn context(&self, requests: &RequestContext) -> Result<RequestContext, ApiError> {
        let context = self.context_of_models(requests)?;
        self.account.check_pictures(self.limits.pictures_per_day).map_err(refused)?;
        Ok(context)
    }

    /// The same of what may have been asked for before: its pictures count already then.
    ///
    /// # Errors
    /// If it may use no model at all.
    pub(crate) fn context_of_models(
        &self,
        requests: &RequestContext,
    ) -> Result<RequestContext, ApiError> {
        let models = self.models(&requests.models);
        if models.all().is_empty() {
            return Err(ApiError::NoModelAllowed);
        }
        Ok(requests.with_models(models))
    }

    /// Counts the pictures that it asks for.
    ///
    /// # Errors
    /// [`ApiError::PicturesSpent`] if the day has no room for them.
    pub(crate) fn book(&self, pictures: usize) -> Result<(), ApiError> {
        let pictures = u32::try_from(pictures).unwrap_or(u32::MAX);
        let booked = self.account.book(self.limits.pictures_per_day, pictures).map_err(refused)?;
        *self.booked.lock().unwrap_or_else(PoisonError::into_inner) = Some(booked);
        Ok(())
    }

    /// Counts its pictures no more: they were not made.
    pub(crate) fn give_back(&self) {
        let booked = self.booked.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(booked) = booked {
            self.account.give_back(booked);
        }
    }
}

/// Who is in line for the owner of a job.
pub(crate) fn client_of(owner: &Owner) -> Client {
    Client::of(owner)
}

fn refused(spent: PicturesSpent) -> ApiError {
    ApiError::PicturesSpent { limit: spent.limit.get(), left: spent.left, wait: spent.wait }
}
