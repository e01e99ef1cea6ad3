// The map of ids, which Python calls and XLA does not.

#include "id_map.h"
