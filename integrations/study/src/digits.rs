//! The network of the example `digits` of lion-candle.

use crate::data::{CLASSES, Digits, PIXELS};
use crate::random::Random;
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarMap;
use candle_nn::loss::cross_entropy;
use std::sync::PoisonError;

const DATA: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../examples/data/digits.csv"
);
/// Inputs, hidden units and outputs.
const SIZES: [usize; 4] = [PIXELS, 256, 128, CLASSES];

/// A network with two hidden layers, and its images. A fifth of the images is for the test; a seed chooses which.
#[derive(Debug)]
pub(crate) struct Network {
    layers: Vec<(Var, Var)>,
    training: Digits,
    test: Digits,
}

impl Network {
    pub(crate) fn new(varmap: &VarMap, dtype: DType, seed: u64) -> Result<Self> {
        let digits = Digits::read(DATA.as_ref())?;
        let (training, test) = digits.split(&mut Random::new(seed, 0));
        let mut random = Random::new(seed, 1);
        let mut layers = Vec::new();
        for (number, pair) in SIZES.windows(2).enumerate() {
            // He et al., "Delving deep into rectifiers", 2015.
            let deviation = (2.0 / pair[0] as f32).sqrt();
            let weights = (0..pair[0] * pair[1]).map(|_| deviation * random.normal());
            let weight = Tensor::from_iter(weights, &Device::Cpu)?.reshape((pair[0], pair[1]))?;
            let bias = Tensor::zeros(pair[1], DType::F32, &Device::Cpu)?;
            let add = |part: &str, tensor: &Tensor| -> Result<Var> {
                let var = Var::from_tensor(&tensor.to_dtype(dtype)?)?;
                let mut map = varmap.data().lock().unwrap_or_else(PoisonError::into_inner);
                map.insert(format!("layer{}.{part}", number + 1), var.clone());
                Ok(var)
            };
            layers.push((add("weight", &weight)?, add("bias", &bias)?));
        }
        Ok(Network {
            layers,
            training,
            test,
        })
    }

    /// Returns the training images.
    pub(crate) fn images(&self) -> &Digits {
        &self.training
    }

    /// Returns the mean cross-entropy.
    pub(crate) fn loss(&self, digits: &Digits) -> Result<Tensor> {
        let (images, labels) = tensors(digits)?;
        Ok(cross_entropy(&self.logits(&images)?, &labels)?)
    }

    /// Returns the loss on the test images, and the share that is classified correctly.
    pub(crate) fn test(&self) -> Result<(f64, f64)> {
        let (images, labels) = tensors(&self.test)?;
        let logits = self.logits(&images)?;
        let loss = cross_entropy(&logits, &labels)?.to_scalar::<f32>()?;
        let right = logits.argmax(1)?.eq(&labels)?.to_dtype(DType::F32)?;
        let share = right.mean_all()?.to_scalar::<f32>()?;
        Ok((f64::from(loss), f64::from(share)))
    }

    fn logits(&self, images: &Tensor) -> Result<Tensor> {
        let mut x = images.clone();
        for (number, (weight, bias)) in self.layers.iter().enumerate() {
            let weight = weight.to_dtype(DType::F32)?;
            x = x
                .matmul(&weight)?
                .broadcast_add(&bias.to_dtype(DType::F32)?)?;
            if number + 1 < self.layers.len() {
                x = x.relu()?;
            }
        }
        Ok(x)
    }
}

/// Minibatches of the training images, in a new order in each pass, with jitter.
#[derive(Debug)]
pub(crate) struct Batches<'d> {
    digits: &'d Digits,
    random: Random,
    order: Vec<usize>,
    next: usize,
    count: usize,
}

impl<'d> Batches<'d> {
    pub(crate) fn new(seed: u64, digits: &'d Digits, count: usize) -> Self {
        let images = digits.labels.len();
        Batches {
            digits,
            random: Random::new(seed, 2),
            order: (0..images).collect(),
            next: images,
            count: count.min(images),
        }
    }

    /// Returns the next minibatch. If it is all images, they are not jittered, so all minibatches are equal.
    pub(crate) fn next(&mut self) -> Digits {
        if self.count == self.order.len() {
            return self.digits.select(&self.order);
        }
        if self.next + self.count > self.order.len() {
            self.random.shuffle(&mut self.order);
            self.next = 0;
        }
        let places = &self.order[self.next..self.next + self.count];
        self.next += self.count;
        self.digits.select(places).jittered(&mut self.random)
    }
}

/// Returns images and labels as tensors.
fn tensors(digits: &Digits) -> Result<(Tensor, Tensor)> {
    let shape = digits.images.dim();
    let pixels = digits.images.as_slice().context("images in row order")?;
    let images = Tensor::from_slice(pixels, shape, &Device::Cpu)?;
    let labels: Result<Vec<u32>, _> = digits.labels.iter().map(|&it| u32::try_from(it)).collect();
    let labels = Tensor::from_vec(labels?, digits.labels.len(), &Device::Cpu)?;
    Ok((images, labels))
}
