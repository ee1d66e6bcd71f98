#include "element.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace kernel_tests {

const Format& format(Type type) {
  static const Format formats[] = {
      {"float32", 4, 24, -126, 127, 0x1p-24, 0x1p-24},
      {"float64", 8, 53, -1022, 1023, 0x1p-53, 0x1p-53},
      {"float16", 2, 11, -14, 15, 0x1p-11, 0x1p-24},
      {"bfloat16", 2, 8, -126, 127, 0x1p-8, 0x1p-24}};
  return formats[static_cast<int>(type)];
}

double ulp(Type type, long double value) {
  const Format& f = format(type);
  int exponent = f.least;
  if (value != 0 && std::isfinite(value)) {
    int found = std::ilogb(value);
    exponent = found > f.least ? found : f.least;
  }
  return std::ldexp(1.0, exponent - (f.digits - 1));
}

double rounded(Type type, double value) {
  if (!std::isfinite(value) || value == 0) {
    return value;
  }
  if (type == Type::float32) {
    return static_cast<float>(value);
  }
  if (type == Type::float64) {
    return value;
  }
  double step = ulp(type, value);
  double result = std::nearbyint(value / step) * step;
  double largest = std::ldexp(2.0, format(type).greatest);
  return std::fabs(result) < largest
      ? result
      : std::copysign(std::numeric_limits<double>::infinity(), value);
}

double get(Type type, const void* from) {
  switch (type) {
    case Type::float32: {
      float f;
      std::memcpy(&f, from, sizeof f);
      return f;
    }
    case Type::float64: {
      double d;
      std::memcpy(&d, from, sizeof d);
      return d;
    }
    case Type::float16: {
      uint16_t bits;
      std::memcpy(&bits, from, sizeof bits);
      int exponent = (bits >> 10) & 31;
      double mantissa = bits & 1023;
      double size = exponent == 31
          ? (mantissa != 0 ? std::numeric_limits<double>::quiet_NaN()
                           : std::numeric_limits<double>::infinity())
          : exponent == 0 ? std::ldexp(mantissa, -24)
                          : std::ldexp(mantissa + 1024, exponent - 25);
      return bits & 0x8000 ? -size : size;
    }
    case Type::bfloat16: {
      uint16_t bits;
      std::memcpy(&bits, from, sizeof bits);
      uint32_t wide = static_cast<uint32_t>(bits) << 16;
      float f;
      std::memcpy(&f, &wide, sizeof f);
      return f;
    }
  }
  return 0;
}

void put(Type type, void* to, double value) {
  value = rounded(type, value);
  if (type == Type::float64) {
    std::memcpy(to, &value, sizeof value);
    return;
  }
  float f = static_cast<float>(value); // exact
  if (type == Type::float32) {
    std::memcpy(to, &f, sizeof f);
    return;
  }
  uint16_t bits;
  if (type == Type::bfloat16) {
    uint32_t wide;
    std::memcpy(&wide, &f, sizeof wide);
    bits = static_cast<uint16_t>(wide >> 16);
  } else {
    double size = std::fabs(value);
    if (std::isnan(value)) {
      bits = 0x7e00;
    } else if (std::isinf(value)) {
      bits = 0x7c00;
    } else if (size < 0x1p-14) {
      bits = static_cast<uint16_t>(std::ldexp(size, 24));
    } else {
      int exponent = std::ilogb(size);
      bits = static_cast<uint16_t>(
          ((exponent + 14) << 10) +
          static_cast<int>(std::ldexp(size, 10 - exponent)));
    }
    bits |= std::signbit(value) ? 0x8000 : 0;
  }
  std::memcpy(to, &bits, sizeof bits);
}

} // namespace kernel_tests
