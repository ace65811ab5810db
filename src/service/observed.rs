//! The pool as the metrics tell of it: read when somebody asks.

use std::collections::BTreeMap;

use super::board::{Board, ReplicaState};
use super::queue::{LineState, Queue};
use crate::metrics::{DeviceState, LoraState, ModelState, ReplicaPresence, State};
use crate::model::{DeviceChoice, ModelCard, device_memory};

/// Where streamed weights, pictures and requests are, whatever models run on.
const HOST: &str = "cpu";

/// How the lines and the models stand.
pub(super) fn state_of(cards: &[ModelCard], queue: &Queue, board: &Board) -> State {
    let lines = queue.lines();
    let mut weights = BTreeMap::from([(HOST.to_owned(), 0)]);
    let mut models = Vec::new();
    for (index, (card, line)) in cards.iter().zip(&lines).enumerate() {
        let mut replicas = Vec::new();
        for (device, state) in board.replicas_by_device(index) {
            let replica = presence(device, &state);
            if let ReplicaState::Loaded(loaded) = &state {
                *weights.entry(replica.device.clone()).or_default() += loaded.weight_bytes;
            }
            replicas.push(replica);
        }
        let LineState { waiting, running, .. } = *line;
        models.push(ModelState { name: card.id.clone(), waiting, running, replicas });
    }
    let devices = weights.into_iter().map(|(name, bytes)| device_state(name, bytes)).collect();
    State { models, devices, loras: loras_of(lines), ..State::default() }
}

/// A model that is loaded says where; else it is where it will most likely be.
fn presence(device: DeviceChoice, state: &ReplicaState) -> ReplicaPresence {
    match state {
        ReplicaState::Loaded(loaded) => {
            ReplicaPresence { device: loaded.device.clone(), is_loaded: true }
        }
        ReplicaState::NotLoaded | ReplicaState::Loading | ReplicaState::Failed(_) => {
            ReplicaPresence { device: device.likely().to_string(), is_loaded: false }
        }
    }
}

/// Only devices that hold a model, and so are open, are asked.
fn device_state(name: String, weight_bytes: usize) -> DeviceState {
    let memory = name.parse().ok().and_then(device_memory);
    DeviceState {
        name,
        free_bytes: memory.map(|memory| memory.free_bytes),
        total_bytes: memory.map(|memory| memory.total_bytes),
        weight_bytes,
    }
}

fn loras_of(lines: Vec<LineState>) -> LoraState {
    let mut loras = LoraState::default();
    for line in lines {
        loras.running.extend(line.running_loras);
        loras.waiting.extend(line.waiting_loras);
    }
    loras
}
