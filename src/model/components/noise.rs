//! Noise that is torch's, number for number.
//!
//! `torch.randn(n, generator=torch.Generator("cpu").manual_seed(seed),
//! dtype=torch.float32)`, up to the last bit of `ln`, `cos` and `sin`.
//! Checked against torch 2.11 (`tests/data/noise.json`).

/// Elements that one block of the vectorised Box-Muller transform makes.
const BLOCK: usize = 16;
const STATE_LENGTH: usize = 624;

/// torch's CPU generator: the 32-bit Mersenne Twister (Matsumoto and Nishimura,
/// 1998), seeded as Knuth does.
#[derive(Clone)]
pub struct TorchGenerator {
    state: [u32; STATE_LENGTH],
    next: usize,
    /// The second number of a scalar Box-Muller pair.
    spare_normal: Option<f64>,
}

impl TorchGenerator {
    /// `torch.Generator("cpu").manual_seed(seed)`: the low 32 bits count.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut state = [0_u32; STATE_LENGTH];
        #[expect(clippy::cast_possible_truncation, reason = "torch seeds with the low 32 bits")]
        {
            state[0] = seed as u32;
        }
        let mut index = 0_u32;
        for at in 1..STATE_LENGTH {
            index += 1;
            let before = state[at - 1];
            state[at] = 1_812_433_253_u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(index);
        }
        Self { state, next: STATE_LENGTH, spare_normal: None }
    }

    /// `count` numbers of the standard normal distribution, as `torch.randn` draws them.
    pub fn normal(&mut self, count: usize) -> Vec<f32> {
        if count < BLOCK {
            return (0..count).map(|_| self.scalar_normal()).collect();
        }
        let mut numbers: Vec<f32> = (0..count).map(|_| self.uniform_f32()).collect();
        let whole = count - count % BLOCK;
        numbers[..whole].chunks_exact_mut(BLOCK).for_each(box_muller);
        if whole < count {
            // torch draws the last 16 anew, over numbers that are finished already.
            let tail = &mut numbers[count - BLOCK..];
            tail.iter_mut().for_each(|number| *number = self.uniform_f32());
            box_muller(tail);
        }
        numbers
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == STATE_LENGTH {
            self.refill();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn refill(&mut self) {
        for at in 0..STATE_LENGTH {
            let following = self.state[(at + 1) % STATE_LENGTH];
            let mixed = (self.state[at] & 0x8000_0000) | (following & 0x7fff_ffff);
            let twist = if mixed & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[at] = self.state[(at + 397) % STATE_LENGTH] ^ (mixed >> 1) ^ twist;
        }
        self.next = 0;
    }

    /// 24 random bits in [0, 1).
    fn uniform_f32(&mut self) -> f32 {
        #[expect(clippy::cast_precision_loss, reason = "24 bits fit a float's significand")]
        let bits = (self.next_u32() & 0x00ff_ffff) as f32;
        bits / 16_777_216.0
    }

    /// 53 random bits in [0, 1).
    fn uniform_f64(&mut self) -> f64 {
        let high = u64::from(self.next_u32());
        let bits = ((high << 32) | u64::from(self.next_u32())) & ((1 << 53) - 1);
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit a double's significand")]
        let bits = bits as f64;
        bits / 9_007_199_254_740_992.0
    }

    /// torch's path for fewer than 16 numbers: in double precision, two at a time.
    fn scalar_normal(&mut self) -> f32 {
        #[expect(clippy::cast_possible_truncation, reason = "torch rounds the double to a float")]
        let rounded = |number: f64| number as f32;
        if let Some(spare) = self.spare_normal.take() {
            return rounded(spare);
        }
        let (angle, magnitude) = (self.uniform_f64(), self.uniform_f64());
        let radius = (-2.0 * (-magnitude).ln_1p()).sqrt();
        let angle = 2.0 * std::f64::consts::PI * angle;
        self.spare_normal = Some(radius * angle.sin());
        rounded(radius * angle.cos())
    }
}

/// Turns 16 uniform numbers into 16 normal ones: the first eight give the radii,
/// the last eight the angles.
fn box_muller(block: &mut [f32]) {
    let (radii, angles) = block.split_at_mut(BLOCK / 2);
    for (first, second) in radii.iter_mut().zip(angles) {
        let radius = (-2.0 * (1.0 - *first).ln()).sqrt();
        let angle = std::f32::consts::TAU * *second;
        *first = radius * angle.cos();
        *second = radius * angle.sin();
    }
}
