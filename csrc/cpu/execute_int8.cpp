// What differs with int8: the input is quantised as it is loaded, the output is float32, and pools
// rescale.
#include <algorithm>

#include "execute.h"

namespace inception_fused::cpu {

Scale scale_of(const Program& program, int64_t buffer, const Operands<uint8_t>& operands) {
  return get_scale(operands.pack + program.layout.scales, buffer);
}

void run_load_int8(const Program& program, const Task& task, const Operands<uint8_t>& operands) {
  const Place& to = program.places[kIn];
  const Strided& x = operands.x;
  const Scale scale = scale_of(program, kIn, operands);
  const float inverse = 1.0f / scale.scale;
  const auto quantise = program.kernels.int8.quantise;
  uint8_t* dst = base_of(program, kIn, operands);
  auto* columns = reinterpret_cast<float*>(operands.own);
  for (int64_t i = task.first; i < task.last; ++i) {
    const int64_t image = i / to.size.height;
    const int64_t y = i % to.size.height;
    const float* src = static_cast<const float*>(x.data) +
                       (operands.first_image + image) * x.stride[0] + y * x.stride[2];
    uint8_t* row = dst + to.image(image) + y * to.row;
    if (x.channels_last()) {
      quantise(src, x.stride[3], to.size.width, to.channels, inverse, scale.zero, row, to.pixel);
      continue;
    }
    for (int64_t pixel = 0; pixel < to.size.width; pixel += kPoolChunk) {
      const int64_t count = std::min(kPoolChunk, to.size.width - pixel);
      program.kernels.float32.transpose(src + pixel, x.stride[1], to.channels, count, columns,
                                        to.channels);
      quantise(columns, to.channels, count, to.channels, inverse, scale.zero,
               row + pixel * to.pixel, to.pixel);
    }
  }
}

void run_store_int8(const Program& program, const Task& task, const Operands<uint8_t>& operands) {
  const Place& from = program.places[kOut];
  const Strided& out = operands.out;
  const uint8_t* src = base_of(program, kOut, operands);
  for (int64_t i = task.first; i < task.last; ++i) {
    const int64_t image = i / from.size.height;
    const int64_t y = i % from.size.height;
    const uint8_t* row = src + from.image(image) + y * from.row;
    program.kernels.float32.transpose(
        reinterpret_cast<const float*>(row), from.pixel / int64_t{sizeof(float)}, from.size.width,
        from.channels,
        static_cast<float*>(out.data) + (operands.first_image + image) * out.stride[0] +
            y * out.stride[2],
        out.stride[1]);
  }
}

namespace {

// One pixel's response, in float32.
class Respond {
 public:
  Respond(const Program& program, const Step& step, const Rescale& from, const Rescale& to,
          uint8_t* own)
      : kernels_(program.kernels), step_(step), from_(from), to_(to) {
    values_ = reinterpret_cast<float*>(own);
    responses_ = values_ + step.src.channels;
    squares_ = responses_ + step.src.channels;
  }

  // to.factor is the inverse of the scale.
  void operator()(const uint8_t* src, uint8_t* dst) const {
    const int64_t channels = step_.src.channels;
    const Response& r = step_.response;
    const int64_t most = channels - 1;  // beyond it there is no channel
    float* result = to_.wide ? reinterpret_cast<float*>(dst) : responses_;
    kernels_.int8.dequantise(src, channels, from_.zero, from_.factor, values_);
    kernels_.float32.response(values_, channels, std::min(r.size / 2, most),
                              std::min(r.size - 1 - r.size / 2, most),
                              r.alpha / static_cast<float>(r.size), r.beta, r.k, squares_, result);
    if (to_.wide) return;
    kernels_.int8.quantise(result, channels, 1, channels, to_.factor, to_.zero, dst, channels);
  }

 private:
  const Kernels& kernels_;
  const Step& step_;
  const Rescale from_, to_;
  float *values_, *responses_, *squares_;
};

}  // namespace

void run_pool_int8(const Program& program, const Task& task, const Operands<uint8_t>& operands) {
  const KernelsOf<uint8_t>& kernels = program.kernels.int8;
  const Step& step = program.plan.steps[task.step];
  const Slice& slice = step.dst[0].slice;
  const Place& from = program.places[step.src.buffer];
  const Place& to = program.places[slice.buffer];
  const Scale source = scale_of(program, step.src.buffer, operands);
  const bool wide = slice.buffer == kOut;
  const Scale target = wide ? Scale{1, 0} : scale_of(program, slice.buffer, operands);
  const uint8_t* src = base_of(program, step.src.buffer, operands) + step.src.offset;
  uint8_t* dst =
      base_of(program, slice.buffer, operands) + slice.offset * program.width(slice.buffer);
  Cursor at(to.size, task.first);
  const auto target_of = [&] { return dst + to.image(at.image) + at.y * to.row + at.x * to.pixel; };

  if (step.kind == Kind::LRN) {
    const Respond respond(program, step, {source.scale, 0, source.zero},
                          {1.0f / target.scale, 0, target.zero, wide}, operands.own);
    for (int64_t i = task.first; i < task.last; ++i, at.next()) {
      respond(src + from.image(at.image) + at.y * from.row + at.x * from.pixel, target_of());
    }
    return;
  }
  // An average over the image is one over a window of its size.
  const bool mean = step.kind == Kind::MEAN;
  const Pool pool{mean ? Kind::AVGPOOL : step.kind, mean ? Window{from.size} : step.window};
  const Rescale rescale{source.scale / target.scale, source.zero, target.zero, wide};
  const int64_t channels = step.src.channels;
  for (int64_t i = task.first; i < task.last;) {
    int64_t count = std::min(task.last - i, to.size.width - at.x);
    if (wide && pool.kind == Kind::MAXPOOL) {
      count = std::min(count, kPoolChunk);
      pool_row(kernels, pool, from, src, channels, at, count, operands.own, channels, {});
      for (int64_t p = 0; p < count; ++p) {
        kernels.dequantise(operands.own + p * channels, channels, source.zero, source.scale,
                           reinterpret_cast<float*>(target_of() + p * to.pixel));
      }
    } else {
      pool_row(kernels, pool, from, src, channels, at, count, target_of(), to.pixel, rescale);
    }
    at.next(count);
    i += count;
  }
}

}  // namespace inception_fused::cpu
