// Every entry point of the kernel table against a scalar reference.
//
//   check_kernels                        the list of cases
//   check_kernels --random 1000 --seed 7 cases at random
//   check_kernels --case "entry=..."     one case, as a failure prints it
//   check_kernels --corpus corpus.txt    what a fuzzer found, see fuzz.py
//   check_kernels --isas                 the instruction sets of this machine
//
// MLX_RECURRENT_ISA chooses the instruction set.

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "checks.h"

namespace {

using namespace kernel_tests;

constexpr int kMostFailures = 20; // that are printed

int usage() {
  std::fprintf(
      stderr,
      "usage: check_kernels [--random COUNT [--seed S] | --case TEXT | "
      "--corpus FILE | --isas]\n");
  return 2;
}

// Adds a case for each line, the hexadecimal digits of a fuzzer's bytes.
bool read_corpus(const char* path, std::vector<Case>& cases) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    std::vector<unsigned char> bytes;
    for (size_t i = 0; i + 1 < line.size(); i += 2) {
      bytes.push_back(
          static_cast<unsigned char>(
              std::strtoul(line.substr(i, 2).c_str(), nullptr, 16)));
    }
    cases.push_back(case_of_bytes(bytes.data(), bytes.size()));
  }
  if (!file.eof() || cases.empty()) {
    std::fprintf(stderr, "no corpus: %s\n", path);
    return false;
  }
  return true;
}

} // namespace

int main(int count, char** arguments) {
  int64_t random = -1;
  uint64_t seed = 0;
  std::vector<Case> cases;
  for (int i = 1; i < count; ++i) {
    const char* name = arguments[i];
    if (std::strcmp(name, "--isas") == 0) {
      std::puts(mlx_recurrent::kernels::available_isas());
      return 0;
    }
    const char* value = ++i < count ? arguments[i] : nullptr;
    Case c;
    if (value && std::strcmp(name, "--random") == 0) {
      random = std::atoll(value);
    } else if (value && std::strcmp(name, "--seed") == 0) {
      seed = static_cast<uint64_t>(std::atoll(value));
    } else if (
        value && std::strcmp(name, "--case") == 0 && Case::parse(value, c)) {
      cases.push_back(c);
    } else if (
        value && std::strcmp(name, "--corpus") == 0 &&
        read_corpus(value, cases)) {
      continue;
    } else {
      return usage();
    }
  }
  const bool elementary = count == 1;
  const auto* table = mlx_recurrent::kernels::table();
  if (!table) {
    std::fprintf(
        stderr,
        "MLX_RECURRENT_ISA is none of %s\n",
        mlx_recurrent::kernels::available_isas());
    return 2;
  }
  if (random >= 0) {
    for (int64_t i = 0; i < random; ++i) {
      cases.push_back(
          random_case(seed * 1'000'000'007 + static_cast<uint64_t>(i)));
    }
  } else if (cases.empty()) {
    cases = listed_cases();
  }

  auto start = std::chrono::steady_clock::now();
  int failures = 0;
  Largest largest[kEntries];
  for (const Case& c : cases) {
    std::string fault = check_case(*table, c, largest);
    if (!fault.empty() && ++failures <= kMostFailures) {
      std::printf(
          "FAILED: %s\n  MLX_RECURRENT_ISA=%s %s --case \"%s\"\n",
          fault.c_str(),
          table->isa,
          arguments[0],
          c.text().c_str());
    }
  }
  if (elementary) {
    for (const std::string& fault : check_reference()) {
      std::printf("FAILED: %s\n", fault.c_str());
      ++failures;
    }
    for (const std::string& fault : check_elementary(*table)) {
      std::printf("FAILED: %s\n", fault.c_str());
      ++failures;
    }
    for (const std::string& fault : check_operations(*table)) {
      std::printf("FAILED: %s\n", fault.c_str());
      ++failures;
    }
  }
  std::chrono::duration<double> seconds =
      std::chrono::steady_clock::now() - start;
  for (const Largest& l : largest) {
    if (l.error > 0) {
      std::printf(
          "  %.2f of what is allowed: %s\n", l.error, l.where.text().c_str());
    }
  }
  std::printf(
      "%s: %zu cases, %d failures, %.1f s\n",
      table->isa,
      cases.size(),
      failures,
      seconds.count());
  std::fflush(stdout);
  return failures == 0 ? 0 : 1;
}
