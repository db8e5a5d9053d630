//! Numbers with a shape, as they lie in a file: contiguous, row-major, little-endian.

use candle_core::{Device, Tensor};
use half::{bf16, f16};

use crate::error::{Error, Result};

/// What an element is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// IEEE double.
    F64,
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of a single.
    Bf16,
    /// Signed, 8 bytes.
    I64,
    /// Signed, 4 bytes.
    I32,
    /// Signed, 2 bytes.
    I16,
    /// Signed, 1 byte.
    I8,
    /// Unsigned, 1 byte.
    U8,
    /// One byte, 0 or 1.
    Bool,
}

impl Element {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Is it a floating-point number?
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::Bf16)
    }
}

/// Numbers with a shape; a scalar's is empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// What the elements are.
    pub element: Element,
    /// Outermost first.
    pub shape: Vec<usize>,
    /// Row-major, little-endian; its length is that of the shape.
    data: Vec<u8>,
}

/// Elements of a shape, if they can be counted.
pub(super) fn count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &s| n.checked_mul(s))
}

impl Array {
    /// From bytes, which are row-major and little-endian.
    ///
    /// # Errors
    /// Bytes that are not as many as the shape has.
    pub fn new(element: Element, shape: Vec<usize>, data: Vec<u8>) -> Result<Self> {
        if count(&shape).and_then(|n| n.checked_mul(element.size())) != Some(data.len()) {
            let problem = format!("{} bytes are not a {element:?} array of shape {shape:?}", data.len());
            return Err(Error::request(problem, "give as many values as the shape has"));
        }
        Ok(Self { element, shape, data })
    }

    /// From single-precision values.
    ///
    /// # Errors
    /// Values that are not as many as the shape has.
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Result<Self> {
        Self::new(Element::F32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// From integers, as 8 bytes each.
    ///
    /// # Errors
    /// Values that are not as many as the shape has.
    pub fn from_i64(shape: Vec<usize>, values: &[i64]) -> Result<Self> {
        Self::new(Element::I64, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// From integers, as 4 bytes each.
    ///
    /// # Errors
    /// Values that are not as many as the shape has.
    pub fn from_i32(shape: Vec<usize>, values: &[i32]) -> Result<Self> {
        Self::new(Element::I32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// A tensor's values, as f32.
    ///
    /// # Errors
    /// When the tensor cannot be read.
    pub fn from_tensor(tensor: &Tensor) -> Result<Self> {
        let values = tensor.flatten_all()?.to_dtype(candle_core::DType::F32)?.to_device(&Device::Cpu)?.to_vec1::<f32>()?;
        Self::from_f32(tensor.dims().to_vec(), &values)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.data.len() / self.element.size()
    }

    /// Has it no element?
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The bytes, row-major and little-endian.
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }

    /// The elements in f64, row-major; exact but for integers beyond 2^53.
    pub fn to_f64(&self) -> Vec<f64> {
        fn each<const N: usize>(data: &[u8], f: impl Fn([u8; N]) -> f64) -> Vec<f64> {
            data.as_chunks::<N>().0.iter().map(|b| f(*b)).collect()
        }
        let d = &self.data;
        match self.element {
            Element::F64 => each(d, f64::from_le_bytes),
            Element::F32 => each(d, |b| f64::from(f32::from_le_bytes(b))),
            Element::F16 => each(d, |b| f16::from_le_bytes(b).to_f64()),
            Element::Bf16 => each(d, |b| bf16::from_le_bytes(b).to_f64()),
            Element::I64 => each(d, |b| i64::from_le_bytes(b) as f64),
            Element::I32 => each(d, |b| f64::from(i32::from_le_bytes(b))),
            Element::I16 => each(d, |b| f64::from(i16::from_le_bytes(b))),
            Element::I8 => each(d, |b: [u8; 1]| f64::from(b[0] as i8)),
            Element::U8 | Element::Bool => each(d, |b: [u8; 1]| f64::from(b[0])),
        }
    }

    /// The elements in f32, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        fn each<const N: usize>(data: &[u8], f: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            data.as_chunks::<N>().0.iter().map(|b| f(*b)).collect()
        }
        match self.element {
            Element::F32 => each(&self.data, f32::from_le_bytes),
            Element::F16 => each(&self.data, |b| f16::from_le_bytes(b).to_f32()),
            Element::Bf16 => each(&self.data, |b| bf16::from_le_bytes(b).to_f32()),
            _ => self.to_f64().into_iter().map(|v| v as f32).collect(),
        }
    }

    /// The elements as integers, row-major; `None` where they are floating-point numbers.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        match self.element {
            Element::I64 => Some(self.data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect()),
            element if element.is_float() => None,
            // At most 4 bytes: exact in f64.
            _ => Some(self.to_f64().into_iter().map(|v| v as i64).collect()),
        }
    }

    /// An f32 tensor on the CPU.
    ///
    /// # Errors
    /// When the tensor cannot be made.
    pub fn to_tensor(&self) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.to_f32(), self.shape.as_slice(), &Device::Cpu)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_keeps_its_value() {
        let f = |element, data: &[u8]| Array::new(element, vec![data.len() / Element::size(element)], data.to_vec()).unwrap();
        assert_eq!(f(Element::F64, &1.5f64.to_le_bytes()).to_f32(), [1.5]);
        assert_eq!(f(Element::F16, &f16::from_f32(-0.25).to_le_bytes()).to_f32(), [-0.25]);
        assert_eq!(f(Element::Bf16, &bf16::from_f32(3.0).to_le_bytes()).to_f32(), [3.0]);
        assert_eq!(f(Element::I64, &(-7i64).to_le_bytes()).to_i64().unwrap(), [-7]);
        assert_eq!(f(Element::I32, &(-7i32).to_le_bytes()).to_i64().unwrap(), [-7]);
        assert_eq!(f(Element::I16, &(-7i16).to_le_bytes()).to_f32(), [-7.0]);
        assert_eq!(f(Element::I8, &[0xFF]).to_i64().unwrap(), [-1]);
        assert_eq!(f(Element::U8, &[0xFF]).to_i64().unwrap(), [255]);
        assert_eq!(f(Element::F32, &1.0f32.to_le_bytes()).to_i64(), None);
        assert!(Array::new(Element::F32, vec![usize::MAX, 4], Vec::new()).is_err());
        assert!(Array::from_f32(vec![2], &[1.0]).is_err());
    }
}
