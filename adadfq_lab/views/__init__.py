"""What people look at: charts, live figures and widgets. Nothing here plays; it draws what was played."""
