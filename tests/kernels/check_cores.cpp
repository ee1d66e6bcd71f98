// The CPU quota of control groups and the kinds of cores, read from small trees
// of files that look like those of /proc and /sys; and the cores of this
// process.

#include <stdlib.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "expect.h"
#include "kernels/cores.h"
#include "kernels/team.h"

namespace {

using namespace mlx_recurrent::kernels;
namespace fs = std::filesystem;

using Files = std::vector<std::pair<std::string, std::string>>;

struct Tree {
  const char* name;
  std::string list; // the text of /proc/self/cgroup
  Files files;      // in the folder of the groups
  double quota;
};

std::string repeated(int count, const std::string& text) {
  std::string all;
  for (int i = 0; i < count; ++i) {
    all += text;
  }
  return all;
}

Files version1(
    const std::string& group,
    const std::string& quota,
    const std::string& period = "100000\n") {
  return {
      {group + "/cpu.cfs_quota_us", quota},
      {group + "/cpu.cfs_period_us", period}};
}

Files both(Files files, const Files& more) {
  files.insert(files.end(), more.begin(), more.end());
  return files;
}

const std::string kHuge = repeated(40, "9");
// Longer than any path that can be opened.
const std::string kDeep = repeated(3000, "/ab");

const std::vector<Tree> kTrees = {
    {"nothing", "", {}, 0},
    // Version 2.
    {"root", "0::/\n", {{"cpu.max", "150000 100000\n"}}, 1.5},
    {"root, no list", "", {{"cpu.max", "150000 100000\n"}}, 1.5},
    {"max", "0::/\n", {{"cpu.max", "max 100000\n"}}, 0},
    {"own group", "0::/a/b\n", {{"a/b/cpu.max", "20000 100000\n"}}, 0.2},
    {"group around it", "0::/a/b/c\n", {{"a/cpu.max", "20000 100000\n"}}, 0.2},
    {"least: own",
     "0::/a/b\n",
     {{"cpu.max", "400000 100000\n"},
      {"a/cpu.max", "300000 100000\n"},
      {"a/b/cpu.max", "50000 25000\n"}},
     2},
    {"least: around",
     "0::/a/b\n",
     {{"cpu.max", "max 100000\n"},
      {"a/cpu.max", "30000 100000\n"},
      {"a/b/cpu.max", "50000 25000\n"}},
     0.3},
    {"least: root",
     "0::/a\n",
     {{"cpu.max", "100000 100000\n"}, {"a/cpu.max", "200000 100000\n"}},
     1},
    {"another group",
     "0::/a/b\n",
     {{"a/bc/cpu.max", "20000 100000\n"}, {"b/cpu.max", "20000 100000\n"}},
     0},
    {"missing folder", "0::/gone/b\n", {{"cpu.max", "20000 100000\n"}}, 0.2},
    {"no end of line", "0::/a", {{"a/cpu.max", "20000 100000"}}, 0.2},
    {"slash at the end", "0::/a/\n", {{"a/cpu.max", "20000 100000"}}, 0.2},
    {"colon and space",
     "0::/a b:c/d\n",
     {{"a b:c/d/cpu.max", "20000 100000"}},
     0.2},
    {"small period", "0::/a\n", {{"a/cpu.max", "1000 1000\n"}}, 1},
    // Version 1.
    {"1: root", "4:cpu:/\n", version1("cpu", "150000\n"), 1.5},
    {"1: root, no list", "", version1("cpu", "150000\n"), 1.5},
    {"1: none", "4:cpu:/\n", version1("cpu", "-1\n"), 0},
    {"1: own group", "4:cpu:/a/b\n", version1("cpu/a/b", "20000\n"), 0.2},
    {"1: around it",
     "4:cpu:/a/b\n",
     both(version1("cpu/a", "20000\n"), version1("cpu/a/b", "-1\n")),
     0.2},
    {"1: among controllers",
     "5:memory:/c\n4:cpuacct,cpu,x:/a\n3:cpuset:/b\n",
     version1("cpu/a", "20000\n"),
     0.2},
    {"1: other controllers",
     "5:cpuset:/a\n4:name=cpu:/a\n3:cpuacct,xcpu,cp:/a\n2:name=systemd:/a\n",
     version1("cpu/a", "20000\n"),
     0},
    {"1: no period", "4:cpu:/\n", {{"cpu/cpu.cfs_quota_us", "20000\n"}}, 0},
    {"1: path of a container's host",
     "4:cpu:/docker/0123\n",
     version1("cpu", "20000\n"),
     0.2},
    {"both versions",
     "4:cpu:/a\n0::/a\n",
     both(version1("cpu/a", "30000\n"), {{"a/cpu.max", "20000 100000\n"}}),
     0.2},
    // The path of a group of another namespace.
    {"outside",
     "0::/../../a\n",
     {{"cpu.max", "150000 100000\n"}, {"a/cpu.max", "20000 100000\n"}},
     1.5},
    {"outside, in the middle",
     "0::/b/../a\n",
     {{"a/cpu.max", "20000 100000\n"}, {"b/x", ""}},
     0},
    {"1: outside",
     "4:cpu:/../b\n",
     both(version1("b", "20000\n"), version1("cpu", "150000\n")),
     1.5},
    {"only like it",
     "0::/..a/...\n",
     {{"..a/.../cpu.max", "20000 100000\n"}},
     0.2},
    // Damaged files.
    {"empty", "0::/a\n", {{"a/cpu.max", ""}, {"cpu.max", "3 1\n"}}, 3},
    {"one number", "0::/a\n", {{"a/cpu.max", "20000\n"}}, 0},
    {"words", "0::/a\n", {{"a/cpu.max", "many of them\n"}}, 0},
    {"fractions", "0::/a\n", {{"a/cpu.max", "0.2 1\n"}}, 0},
    {"zero", "0::/a\n", {{"a/cpu.max", "0 100000\n"}}, 0},
    {"no period", "0::/a\n", {{"a/cpu.max", "20000 0\n"}}, 0},
    {"negative", "0::/a\n", {{"a/cpu.max", "-20000 -100000\n"}}, 0},
    {"huge quota", "0::/a\n", {{"a/cpu.max", kHuge + " 100000\n"}}, 0},
    {"huge period", "0::/a\n", {{"a/cpu.max", "20000 " + kHuge + "\n"}}, 0},
    {"1: huge", "4:cpu:/a\n", version1("cpu/a", kHuge, kHuge), 0},
    {"largest",
     "0::/a\n",
     {{"a/cpu.max", "9223372036854775807 1\n"}},
     9223372036854775807.0},
    {"bytes",
     "0::/a\n",
     {{"a/cpu.max", std::string("\0\xff 1 1\n", 7)}, {"cpu.max", "3 1\n"}},
     3},
    {"a folder in its place", "0::/a\n", {{"a/cpu.max/b", "1 1\n"}}, 0},
    // Damaged lists.
    {"list of words",
     "\n:\n::\n:::\n0:\n0::\n0::a\n0::a/b\ncpu\n:cpu:\n4:cpu\n4:cpu,\n",
     {{"a/b/cpu.max", "20000 100000\n"}},
     0},
    {"no slash, a folder beside the mount",
     "0::s/b\n",
     {{"../mounts/b/cpu.max", "20000 100000\n"}},
     0},
    {"list of bytes",
     std::string("0:\0:/a\n\xff\xfe\n0::/b\n", 17),
     {{"a/cpu.max", "20000 100000\n"}, {"b/cpu.max", "3 1\n"}},
     3},
    {"long lines",
     repeated(100'000, "x") + "\n" + repeated(100'000, ":") + "\n0::/a\n",
     {{"a/cpu.max", "20000 100000\n"}},
     0.2},
    {"long path", "0::" + kDeep + "\n", {{"ab/ab/cpu.max", "3 2\n"}}, 1.5},
    {"1: long path", "4:cpu:" + kDeep + "\n", version1("cpu/ab", "20000"), 0.2},
    {"many lines",
     repeated(10'000, "7:a:/\n") + "0::/a",
     {{"a/cpu.max", "1 2"}},
     0.5},
};

struct Machine {
  const char* name;
  Files files; // in the folder of the devices
  CoreSet allowed;
  int fast;
  int slow;
};

CoreSet from_to(int first, int last) {
  CoreSet cores;
  for (int i = first; i <= last; ++i) {
    cores.set(static_cast<size_t>(i));
  }
  return cores;
}

Files hybrid(const std::string& core, const std::string& atom) {
  return {{"cpu_core/cpus", core}, {"cpu_atom/cpus", atom}};
}

Files capacities(const std::vector<std::string>& texts) {
  Files files;
  for (size_t i = 0; i < texts.size(); ++i) {
    files.push_back(
        {"system/cpu/cpu" + std::to_string(i) + "/cpu_capacity", texts[i]});
  }
  return files;
}

// Every second core from `first` on, as many as a set has.
std::string alternating(size_t first) {
  std::string list;
  for (size_t i = first; i < CoreSet().size(); i += 2) {
    list += std::to_string(i) + ",";
  }
  list.back() = '\n';
  return list;
}

const CoreSet kEight = from_to(0, 7);
const Files kBigAndLittle =
    capacities({"400\n", "400\n", "1024\n", "1024\n", "400\n"});

const std::vector<Machine> kMachines = {
    {"nothing", {}, kEight, 8, 0},
    // The lists of a hybrid processor.
    {"hybrid", hybrid("0-3\n", "4-7\n"), kEight, 4, 4},
    {"hybrid, pieces", hybrid("0-1,4,6-6\n", "2-3,5,7\n"), kEight, 4, 4},
    {"hybrid, one", hybrid("0\n", "1-7\n"), kEight, 1, 7},
    {"hybrid, no end of line", hybrid("0-5", "6-7"), kEight, 6, 2},
    {"hybrid, slow first", hybrid("6-7\n", "0-5\n"), kEight, 2, 6},
    {"hybrid, all that a set has",
     hybrid(alternating(0), alternating(1)),
     from_to(0, 1023),
     512,
     512},
    {"hybrid, more than a set has",
     hybrid("0-3\n", "4-5000\n"),
     from_to(0, 1023),
     4,
     1020},
    {"hybrid, a third kind", hybrid("0-3\n", "4-5\n"), kEight, 4, 4},
    {"hybrid, mask", hybrid("0-3\n", "4-7\n"), from_to(3, 5), 1, 2},
    {"hybrid, mask of fast", hybrid("0-3\n", "4-7\n"), from_to(1, 3), 3, 0},
    {"hybrid, mask of slow", hybrid("0-3\n", "4-7\n"), from_to(5, 7), 3, 0},
    // Damaged lists.
    {"core alone", {{"cpu_core/cpus", "0-3\n"}}, kEight, 8, 0},
    {"atom alone", {{"cpu_atom/cpus", "4-7\n"}}, kEight, 8, 0},
    {"core empty", hybrid("", "4-7\n"), kEight, 8, 0},
    {"core none", hybrid("\n", "4-7\n"), kEight, 8, 0},
    {"atom none", hybrid("0-3\n", "\n"), kEight, 8, 0},
    {"the same", hybrid("0-7\n", "0-7\n"), kEight, 8, 0},
    {"one in both", hybrid("0-4\n", "4-7\n"), kEight, 8, 0},
    {"words", hybrid("all of them\n", "4-7\n"), kEight, 8, 0},
    {"words after it", hybrid("0-3 or so\n", "4-7\n"), kEight, 8, 0},
    {"backward", hybrid("3-0\n", "4-7\n"), kEight, 8, 0},
    {"no last", hybrid("0-\n", "4-7\n"), kEight, 8, 0},
    {"no first", hybrid("-3\n", "4-7\n"), kEight, 8, 0},
    {"two signs", hybrid("0--3\n", "4-7\n"), kEight, 8, 0},
    {"comma at the end", hybrid("0-3,\n", "4-7\n"), kEight, 8, 0},
    {"commas", hybrid("0,,3\n", "4-7\n"), kEight, 8, 0},
    {"steps", hybrid("0-3:1/2\n", "4-7\n"), kEight, 8, 0},
    {"mask of bits", hybrid("0f\n", "f0\n"), kEight, 8, 0},
    {"huge", hybrid("0-3\n", "4-" + kHuge + "\n"), kEight, 8, 0},
    {"largest", hybrid("0-3\n", "4-9223372036854775807\n"), kEight, 4, 4},
    {"bytes", hybrid(std::string("0-3,\0\xff\n", 7), "4-7\n"), kEight, 8, 0},
    {"long line",
     hybrid(repeated(100'000, "0,") + "3\n", "4-7\n"),
     kEight,
     8,
     0},
    {"a line that is cut in a number",
     hybrid(repeated(2048, "0,") + "345\n", "4-7\n"),
     kEight,
     8,
     0},
    {"a folder in its place",
     {{"cpu_core/cpus", "0-3\n"}, {"cpu_atom/cpus/a", "4-7\n"}},
     kEight,
     8,
     0},
    // Capacities.
    {"capacities", kBigAndLittle, from_to(0, 4), 2, 3},
    {"capacities, no end of line",
     capacities({"1024", "1024", "460"}),
     from_to(0, 2),
     2,
     1},
    {"capacities, equal",
     capacities({"1024\n", "1024\n"}),
     from_to(0, 1),
     2,
     0},
    {"capacities, nearly equal",
     capacities({"997\n", "1024\n", "718\n", "1003\n", "700\n"}),
     from_to(0, 4),
     3,
     2},
    {"capacities, three kinds",
     capacities({"1024\n", "620\n", "620\n", "250\n"}),
     from_to(0, 3),
     1,
     3},
    {"capacities, the least of a kind",
     capacities({"1024\n", "768\n", "767\n"}),
     from_to(0, 2),
     2,
     1},
    {"capacities, mask", kBigAndLittle, from_to(1, 2), 1, 1},
    {"capacities, mask of fast", kBigAndLittle, from_to(2, 3), 2, 0},
    {"capacities, mask of slow", kBigAndLittle, from_to(0, 1), 2, 0},
    {"capacities, least",
     capacities({"1\n", "1\n", "2\n"}),
     from_to(0, 2),
     1,
     2},
    {"lists before capacities",
     both(hybrid("0-2\n", "3-4\n"), kBigAndLittle),
     from_to(0, 4),
     3,
     2},
    {"damaged lists, capacities",
     both(hybrid("0-2\n", "many\n"), kBigAndLittle),
     from_to(0, 4),
     2,
     3},
    // Damaged capacities.
    {"one missing", kBigAndLittle, from_to(0, 5), 6, 0},
    {"one empty", capacities({"1024\n", "", "400\n"}), from_to(0, 2), 3, 0},
    {"one of words",
     capacities({"1024\n", "little\n", "400\n"}),
     from_to(0, 2),
     3,
     0},
    {"one that no mask allows",
     capacities({"1024\n", "400\n", "little\n"}),
     from_to(0, 1),
     1,
     1},
    {"zero", capacities({"1024\n", "0\n"}), from_to(0, 1), 2, 0},
    {"negative", capacities({"1024\n", "-400\n"}), from_to(0, 1), 2, 0},
    {"fraction", capacities({"1024\n", "0.4\n"}), from_to(0, 1), 2, 0},
    {"too much", capacities({"1025\n", "400\n"}), from_to(0, 1), 2, 0},
    {"huge capacity", capacities({kHuge + "\n", "400\n"}), from_to(0, 1), 2, 0},
    {"capacity of bytes",
     capacities({"1024\n", std::string("\0\xff 1\n", 5)}),
     from_to(0, 1),
     2,
     0},
    {"a folder for a capacity",
     both(
         capacities({"1024\n"}),
         {{"system/cpu/cpu1/cpu_capacity/a", "400\n"}}),
     from_to(0, 1),
     2,
     0},
};

void write(const fs::path& file, const std::string& text) {
  fs::create_directories(file.parent_path());
  std::ofstream(file, std::ios::binary) << text;
}

// Returns whether the quota was the expected one.
bool check(const fs::path& folder, const Tree& tree) {
  fs::create_directories(folder / "mount");
  write(folder / "list", tree.list);
  for (const auto& [name, text] : tree.files) {
    write(folder / "mount" / name, text);
  }
  double found =
      cpu_quota((folder / "list").c_str(), (folder / "mount").c_str());
  if (found != tree.quota) {
    std::printf("FAILED: %s: %g, not %g\n", tree.name, found, tree.quota);
  }
  return found == tree.quota;
}

// Returns whether so many cores of each kind were found.
bool check(const fs::path& folder, const Machine& machine) {
  fs::create_directories(folder);
  for (const auto& [name, text] : machine.files) {
    write(folder / name, text);
  }
  Cores found = cores_by_kind(folder.c_str(), machine.allowed);
  bool right = found.fast == machine.fast && found.slow == machine.slow;
  if (!right) {
    std::printf(
        "FAILED: %s: %d fast, %d slow, not %d, %d\n",
        machine.name,
        found.fast,
        found.slow,
        machine.fast,
        machine.slow);
  }
  return right;
}

} // namespace

int main() {
  std::string name = fs::temp_directory_path() / "check_cores_XXXXXX";
  EXPECT(mkdtemp(name.data()));
  fs::path folder = name;
  int failed = 0;
  for (const Tree& tree : kTrees) {
    failed += !check(folder / "tree", tree);
    fs::remove_all(folder / "tree");
  }
  for (const Machine& machine : kMachines) {
    failed += !check(folder / "devices", machine);
    fs::remove_all(folder / "devices");
  }
  // Neither file nor folder is there, or one is in the other's place.
  write(folder / "cpu.max", "20000 100000\n");
  std::string list = folder / "cpu.max", none = folder / "none";
  EXPECT(cpu_quota(none.c_str(), none.c_str()) == 0);
  EXPECT(cpu_quota(none.c_str(), name.c_str()) == 0.2);
  EXPECT(cpu_quota(name.c_str(), list.c_str()) == 0);
  EXPECT(cpu_quota(list.c_str(), kDeep.c_str()) == 0);
  EXPECT(cpu_quota(kDeep.c_str(), name.c_str()) == 0.2);
  for (const std::string& devices : {none, list, kDeep}) {
    Cores cores = cores_by_kind(devices.c_str(), kEight);
    EXPECT(cores.fast == 8 && cores.slow == 0);
  }
  fs::remove_all(folder);

  Cores cores = cores_by_kind();
  EXPECT(cores.fast >= 1 && cores.slow >= 0);
  EXPECT(cores.fast + cores.slow == cores_now());
  int usable = usable_cores();
  EXPECT(usable >= 1 && usable <= cores.fast && usable <= kMostThreads);
  EXPECT(cpu_quota() == 0 || usable < cpu_quota() + 1);
  std::printf(
      "%zu trees, %zu machines, %d failed\n",
      kTrees.size(),
      kMachines.size(),
      failed);
  return failed > 0;
}
